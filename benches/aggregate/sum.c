// The yardstick of the aggregation bench: what one core can do at best.
//
// usage: sum MODE ROUNDS DATA_START FILE...
//
// Maps the files and sums the f32 in them chunk by chunk into a block of f64
// that stays in the cache. MODE `fresh` maps the files anew for every round, as
// a server that gets new updates does; `kept` maps them once. Prints the seconds
// of the best round and a sum over all, which keeps the compiler from leaving
// the work out.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 2048
#define MOST 64

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static const char *map(const char *path, size_t *length) {
    int fd = open(path, O_RDONLY);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0) {
        perror(path);
        exit(1);
    }
    *length = status.st_size;
    void *bytes = mmap(NULL, *length, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED) {
        perror(path);
        exit(1);
    }
    close(fd);
    return bytes;
}

static void add(double *restrict sums, const float *restrict values, size_t count) {
    for (size_t i = 0; i < count; i++) sums[i] += (double)values[i];
}

int main(int argc, char **argv) {
    if (argc < 5 || argc - 4 > MOST) {
        fprintf(stderr, "usage: sum fresh|kept ROUNDS DATA_START FILE...\n");
        return 2;
    }
    int fresh = strcmp(argv[1], "fresh") == 0;
    int rounds = atoi(argv[2]);
    size_t start = strtoull(argv[3], NULL, 10);
    int files = argc - 4;
    const char *bytes[MOST];
    size_t length = 0;
    double best = 1e9, check = 0;
    static double sums[BLOCK] __attribute__((aligned(64)));

    for (int round = 0; round < rounds; round++) {
        double before = now();
        if (fresh || round == 0)
            for (int f = 0; f < files; f++) bytes[f] = map(argv[4 + f], &length);
        size_t elements = (length - start) / sizeof(float);
        for (size_t from = 0; from < elements; from += BLOCK) {
            size_t count = elements - from < BLOCK ? elements - from : BLOCK;
            memset(sums, 0, sizeof sums);
            for (int f = 0; f < files; f++)
                add(sums, (const float *)(bytes[f] + start) + from, count);
            check += sums[from / BLOCK % count];
        }
        double seconds = now() - before;
        if (seconds < best) best = seconds;
        if (fresh)
            for (int f = 0; f < files; f++) munmap((void *)bytes[f], length);
    }
    printf("%.9f %.17g\n", best, check);
    return 0;
}
