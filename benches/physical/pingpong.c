/* The least a message between two processes of one machine can cost: 64 bytes
 * there and back over loopback TCP. Prints microseconds per round trip. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BYTES = 64 };

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static int whole(int from, char *bytes) {
    ssize_t got = 0, more;
    while (got < BYTES && (more = read(from, bytes + got, BYTES - got)) > 0) got += more;
    return got == BYTES;
}

int main(int count, char **words) {
    long trips = count > 1 ? atol(words[1]) : 50000;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    char bytes[BYTES] = {0};
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    must(bind(listener, (struct sockaddr *)&at, sizeof at) == 0, "bind");
    must(listen(listener, 1) == 0, "listen");
    must(getsockname(listener, (struct sockaddr *)&at, &size) == 0, "getsockname");
    if (fork() == 0) {
        int peer = socket(AF_INET, SOCK_STREAM, 0);
        must(connect(peer, (struct sockaddr *)&at, sizeof at) == 0, "connect");
        setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        while (whole(peer, bytes)) must(write(peer, bytes, BYTES) == BYTES, "write");
        return 0;
    }
    int peer = accept(listener, NULL, NULL);
    must(peer >= 0, "accept");
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (long i = 0; i < trips; i++) {
        must(write(peer, bytes, BYTES) == BYTES, "write");
        must(whole(peer, bytes), "read");
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    double ns = (b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec);
    printf("%.2f\n", ns / 1e3 / trips);
    return 0;
}
