// What this compiler's headers call of glibc and libstdc++ that systems from 2018 on (glibc 2.27, the C++ runtime of
// GCC 7) don't have, by what they have. Part of the wheel alone; `make wheel` fails where a symbol is missing here.
#include <bits/functexcept.h>
#include <pthread.h>

#include <cerrno>
#include <ctime>
#include <exception>
#include <new>

namespace {

constexpr long kSecond = 1'000'000'000;  // nanoseconds

// When the real-time clock will show what `clock` calls `time`.
timespec in_real_time(clockid_t clock, const timespec& time) {
  timespec there{}, here{};
  clock_gettime(clock, &there), clock_gettime(CLOCK_REALTIME, &here);
  long long seconds = (long long)time.tv_sec - there.tv_sec + here.tv_sec,
            rest = time.tv_nsec - there.tv_nsec + here.tv_nsec;
  seconds += rest / kSecond, rest %= kSecond;
  if (rest < 0) rest += kSecond, seconds--;
  return {(time_t)seconds, (long)rest};
}

}  // namespace

// glibc 2.30. A clock that is set meanwhile wakes the waiter early or late: std::condition_variable looks at its own
// again.
extern "C" int pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock,
                                      const timespec* until) {
  const timespec real = in_real_time(clock, *until);
  return pthread_cond_timedwait(condition, mutex, &real);
}

// GCC 11 (GLIBCXX_3.4.29).
void std::__throw_bad_array_new_length() { throw std::bad_array_new_length(); }

// GCC 11 (CXXABI_1.3.13) counts references by two calls; before, the copy constructor and the destructor did. The first
// only reads where an exception lies and counts, the second counts down and frees.
extern "C" void older_copy(void* to, const void* from) __asm__("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
extern "C" void older_destroy(void* pointer) __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");
extern "C" void add_reference(void* pointer) __asm__("_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
extern "C" void release_reference(void* pointer) __asm__("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");

static_assert(sizeof(std::exception_ptr) == sizeof(void*));

extern "C" void add_reference(void* pointer) {
  void* another = nullptr;  // never destroyed: its reference is the one that is added
  older_copy(&another, pointer);
}

extern "C" void release_reference(void* pointer) {
  void* same = *(void**)pointer;
  older_destroy(&same);
}
