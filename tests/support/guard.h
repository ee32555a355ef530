/* Memory between two unmapped pages, so that a single byte read or written outside it stops the program. */
#ifndef GUARD_H
#define GUARD_H

#include <stdbool.h>
#include <stddef.h>

/* Which end of the memory touches its unmapped page. The other end has up to a page of slack. GDN_TEST_GUARD=before in
 * the environment exchanges the two, so that a second run of a program tries the other end of each of its buffers. */
typedef enum guard_side { GUARD_AFTER, GUARD_BEFORE } guard_side;

typedef struct guard_block {
    unsigned char *data;
    size_t size;
    unsigned char *map;
    size_t map_size;
} guard_block;

/* Zeroed memory. Pages never touched cost nothing, so that `size` may be far beyond the machine's memory. */
guard_block guard_alloc(size_t size, guard_side side);

/* While read-only, a write stops the program too. */
void guard_set_read_only(const guard_block *block, bool read_only);

void guard_free(guard_block *block);

/* malloc() and free() of such memory. */
void *guard_malloc(size_t size);
void guard_release(void *data);

#endif
