/* Runs a fuzz target on files that are there, without libFuzzer: replay FILE_OR_FOLDER... */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <string.h>

#include "input.h"

static int num_inputs;

static void replay_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    static uint8_t data[1 << 20];
    const size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    /* In memory of just that size, so that reading past its end shows. */
    uint8_t *exact = malloc(size + (size == 0));
    if (exact == NULL) abort();
    memcpy(exact, data, size);
    fprintf(stderr, "%s\n", path); /* so that the last line of a failure is its input */
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
    num_inputs++;
}

static void replay(const char *path) {
    DIR *folder = opendir(path);
    if (folder == NULL) {
        replay_file(path);
        return;
    }
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char name[4096];
        if (entry->d_name[0] == '.') continue;
        if (snprintf(name, sizeof name, "%s/%s", path, entry->d_name) >= (int)sizeof name) abort();
        replay_file(name);
    }
    closedir(folder);
}

int main(int argc, char **argv) {
    LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++) replay(argv[i]);
    printf("%d inputs\n", num_inputs);
    return num_inputs == 0;
}
