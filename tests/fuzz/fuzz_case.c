/* Bytes to files: case folders through gdn_oracle run, single .npy files through gdn_oracle compare, as the command
 * line would do it. Whatever the files hold, the program ends with one of its three exit statuses, frees what it took,
 * and what it writes it can read again.
 *
 * The input is the files themselves, one after the other: a byte that picks the name, two bytes of length, the
 * contents. They stay in memory: the program's fopen() and readdir() find them there. */
#define _GNU_SOURCE /* fopencookie */
#include "input.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/types.h>
#include <sys/stat.h>

enum { MAX_FILES = 32, MAX_WORK = 1 << 20 };

typedef struct memory_file {
    const char *name;
    char *written; /* contents of a file that the program wrote; else they are in the input */
    const char *data;
    size_t size;
} memory_file;

static memory_file files[MAX_FILES];
static int num_files;

typedef struct cursor {
    memory_file *file;
    size_t at;
} cursor;

static ssize_t cookie_read(void *cookie, char *to, size_t count) {
    cursor *c = cookie;
    if (count > c->file->size - c->at) count = c->file->size - c->at;
    if (count > 0) memcpy(to, c->file->data + c->at, count);
    c->at += count;
    return (ssize_t)count;
}

static ssize_t cookie_write(void *cookie, const char *from, size_t count) {
    memory_file *f = ((cursor *)cookie)->file;
    f->written = realloc(f->written, f->size + count + 1);
    REQUIRE(f->written != NULL);
    memcpy(f->written + f->size, from, count);
    f->data = f->written;
    f->size += count;
    return (ssize_t)count;
}

static int cookie_seek(void *cookie, off64_t *offset, int whence) {
    cursor *c = cookie;
    const off64_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? (off64_t)c->at : (off64_t)c->file->size;
    if (base + *offset < 0 || base + *offset > (off64_t)c->file->size) return -1;
    *offset += base;
    c->at = (size_t)*offset;
    return 0;
}

static int cookie_close(void *cookie) {
    free(cookie);
    return 0;
}

/* Files by the last part of their path; a new one for a name that is written. */
static FILE *memory_open(const char *path, const char *mode) {
    const char *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path;
    int i = 0;
    if (mode[0] == 'w') {
        static const char *const outputs[] = {"o.npy", "final_state.npy", "intermediate_states.npy"};
        REQUIRE(num_files < MAX_FILES);
        i = num_files++;
        memset(&files[i], 0, sizeof files[i]);
        for (int j = 0; j < 3; j++)
            if (strcmp(name, outputs[j]) == 0) files[i].name = outputs[j];
        REQUIRE(files[i].name != NULL);
    } else {
        while (i < num_files && strcmp(files[i].name, name) != 0) i++;
        if (i == num_files) {
            errno = ENOENT;
            return NULL;
        }
    }
    const cookie_io_functions_t functions = {cookie_read, cookie_write, cookie_seek, cookie_close};
    cursor *c = malloc(sizeof *c);
    REQUIRE(c != NULL);
    c->file = &files[i];
    c->at = 0;
    FILE *stream = fopencookie(c, mode, functions);
    REQUIRE(stream != NULL);
    return stream;
}

/* The one folder that there is, and how far it has been read. */
static int num_listed;

static DIR *memory_opendir(const char *path) {
    (void)path;
    num_listed = 0;
    return (DIR *)(void *)&num_listed;
}

static struct dirent *memory_readdir(DIR *folder) {
    static struct dirent entry;
    int *const listed = (int *)(void *)folder;
    if (*listed == num_files) return NULL;
    snprintf(entry.d_name, sizeof entry.d_name, "%s", files[(*listed)++].name);
    return &entry;
}

static int memory_closedir(DIR *folder) {
    (void)folder;
    return 0;
}

static int no_mkdir(const char *path, mode_t mode) {
    (void)path, (void)mode;
    return 0;
}

static FILE *nowhere;

/* The program itself, on those files and with nothing to say. */
#ifndef GDN_NO_SIMD
#define GDN_NO_SIMD
#endif
#define CASE_MAX_CACHE_BYTES ((uint64_t)1 << 20)
#define fopen memory_open
#define opendir memory_opendir
#define readdir memory_readdir
#define closedir memory_closedir
#define mkdir no_mkdir
#define printf(...) fprintf(nowhere, __VA_ARGS__)
#define puts(text) fputs(text, nowhere)
#undef stdout
#undef stderr
#define stdout nowhere
#define stderr nowhere
#define main oracle_main
#include "../../examples/gdn_oracle.c"
#undef main
#undef fopen
#undef stderr

/* The program with these words as arguments, up to NULL. */
static int oracle(const char *const *words) {
    int argc = 0;
    while (words[argc] != NULL) argc++;
    const int status = oracle_main(argc, (char **)(uintptr_t)words);
    REQUIRE(status == EXIT_SAME || status == EXIT_DIFFERENT || status == EXIT_UNUSABLE);
    return status;
}
#define ORACLE(...) oracle((const char *const[]){"gdn_oracle", __VA_ARGS__, NULL})

/* Whether the case can be run in the time of one input. */
static bool is_small(void) {
    case_call c;
    case_message message;
    if (!case_load(&c, "case", &message)) {
        REQUIRE(strchr(message.text, '\n') == NULL && message.text[0] != '\0');
        return true; /* and is refused once more */
    }
    const gdn_params *p = &c.params;
    const double sequences = (double)(p->cu_seqlens.data != NULL ? p->num_seqs : p->batch_size);
    const double work = (double)p->batch_size * (double)p->seq_len * (double)p->num_value_heads *
                        (double)p->head_k_dim * (double)p->head_v_dim;
    const bool small = sequences < MAX_WORK && work < MAX_WORK && (double)p->head_k_dim < MAX_WORK &&
                       sequences * (double)p->num_value_heads * (double)p->head_v_dim < MAX_WORK;
    case_free(&c);
    return small;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    nowhere = fopen("/dev/null", "w");
    REQUIRE(nowhere != NULL);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"case.txt",
                                        "A_log.npy",
                                        "a.npy",
                                        "dt_bias.npy",
                                        "q.npy",
                                        "k.npy",
                                        "v.npy",
                                        "b.npy",
                                        "cu_seqlens.npy",
                                        "initial_state.npy",
                                        "initial_state_indices.npy",
                                        "output_state_indices.npy",
                                        "intermediate_state_indices.npy",
                                        "retrieve_parent_token.npy",
                                        "ssm_state_indices.npy",
                                        "num_accepted_tokens.npy",
                                        "k_read.npy",
                                        "erase.npy",
                                        "gv.npy",
                                        "token_mask.npy",
                                        "beta.npy"}; /* which no case has */
    input b = {data, data + size};
    num_files = 0;
    while (b.end - b.at > 3 && num_files < MAX_FILES - 6) {
        memory_file *f = &files[num_files++];
        memset(f, 0, sizeof *f);
        f->name = INPUT_PICK(&b, names);
        f->size = input_byte(&b);
        f->size |= (size_t)input_byte(&b) << 8;
        if (f->size > (size_t)(b.end - b.at)) f->size = (size_t)(b.end - b.at);
        f->data = (const char *)b.at;
        b.at += f->size;
    }
    const int given = num_files;
    if (num_files >= 2) {
        static const char *const dtypes[] = {"bf16", "f16", "f32", "f64"};
        char first[64], second[64];
        snprintf(first, sizeof first, "case/%s", files[0].name);
        snprintf(second, sizeof second, "case/%s", files[1].name);
        ORACLE("compare", first, second);
        ORACLE("compare", first, first, "--dtype", dtypes[size % 4]);
    }
    if (is_small()) {
        const int status = ORACLE("run", "case", "out", "--compute", size % 2 ? "f64" : "f32");
        REQUIRE(status != EXIT_DIFFERENT);
        if (status == EXIT_SAME) {
            /* The inputs step aside, as an output may have the name of one. */
            for (int i = 0; i < given; i++) files[i].name = "";
            REQUIRE(num_files > given);
            for (int i = given; i < num_files; i++) {
                npy_array x;
                case_message message;
                REQUIRE(npy_read(files[i].name, &x, &message));
                npy_free(&x);
            }
        }
    }
    for (int i = given; i < num_files; i++) free(files[i].written);
    return 0;
}
