/* A library to preload: the wall clock jumps by ten years, back and forth, at each reading. Other clocks are
   unchanged. */
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define TEN_YEARS 315576000

static time_t jump(void)
{
    static int reads;

    return __atomic_fetch_add(&reads, 1, __ATOMIC_RELAXED) % 2 == 0 ? TEN_YEARS : -TEN_YEARS;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    const long failed = syscall(SYS_clock_gettime, clock, now);

    if (failed == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += jump();
    return (int)failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    const long failed = syscall(SYS_gettimeofday, now, zone);

    if (failed == 0)
        now->tv_sec += jump();
    return (int)failed;
}

time_t time(time_t *into)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (into != NULL)
        *into = now.tv_sec;
    return now.tv_sec;
}
