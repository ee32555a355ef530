#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, MAP_NORESERVE */
#include "guard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void check(bool ok, const char *what) {
    if (ok) return;
    perror(what);
    abort();
}

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static bool exchanged(void) {
    const char *side = getenv("GDN_TEST_GUARD");
    return side != NULL && strcmp(side, "before") == 0;
}

guard_block guard_alloc(size_t size, guard_side side) {
    size_t page = page_size(), inside = (size + page - 1) / page * page;
    guard_block block = {NULL, size, NULL, inside + 2 * page};
    void *map = mmap(NULL, block.map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(map != MAP_FAILED, "mmap");
    block.map = map;
    block.data = block.map + page + ((side == GUARD_AFTER) != exchanged() ? inside - size : 0);
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

/* The blocks of guard_malloc(). */
typedef struct node {
    guard_block block;
    struct node *next;
} node;

static node *blocks;

void *guard_malloc(size_t size) {
    node *n = malloc(sizeof *n);
    if (n == NULL) abort();
    n->block = guard_alloc(size, GUARD_AFTER);
    n->next = blocks;
    blocks = n;
    return n->block.data;
}

void guard_release(void *data) {
    node **at = &blocks;
    if (data == NULL) return;
    while (*at != NULL && (*at)->block.data != data) at = &(*at)->next;
    check(*at != NULL, "guard_release");
    node *n = *at;
    *at = n->next;
    guard_free(&n->block);
    free(n);
}
