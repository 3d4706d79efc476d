#ifndef TESTS_CUDA_EMULATE_CONTROL_H
#define TESTS_CUDA_EMULATE_CONTROL_H
/* What a test may do to the emulated devices. */
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Device memory that there is from now on, UINT64_MAX: any; and what is in use. */
void emulate_limit(uint64_t bytes);
uint64_t emulate_used(void);
/* The device is lost at that many launches from now; negative: it is there (again). */
void emulate_lose_after(long launches);
/* Counts a launch; true when the device is lost. */
bool emulate_tick(void);

#ifdef __cplusplus
}
#endif
#endif
