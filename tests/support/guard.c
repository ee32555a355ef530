#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, MAP_NORESERVE */
#include "guard.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static void check(bool ok, const char *what) {
    if (ok) return;
    perror(what);
    abort();
}

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

guard_block guard_alloc(size_t size, guard_side side) {
    size_t page = page_size(), inside = (size + page - 1) / page * page;
    guard_block block = {NULL, size, NULL, inside + 2 * page};
    void *map = mmap(NULL, block.map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(map != MAP_FAILED, "mmap");
    block.map = map;
    block.data = block.map + page + (side == GUARD_AFTER ? inside - size : 0);
    guard_set_read_only(&block, false);
    return block;
}

void guard_set_read_only(const guard_block *block, bool read_only) {
    size_t page = page_size(), inside = block->map_size - 2 * page;
    if (inside == 0) return;
    check(mprotect(block->map + page, inside, read_only ? PROT_READ : PROT_READ | PROT_WRITE) == 0, "mprotect");
}

void guard_free(guard_block *block) {
    check(munmap(block->map, block->map_size) == 0, "munmap");
    block->map = NULL;
}
