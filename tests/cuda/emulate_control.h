#ifndef TESTS_CUDA_EMULATE_CONTROL_H
#define TESTS_CUDA_EMULATE_CONTROL_H
/* What a test may do to the emulated devices. Two environment variables say before the program starts what they are:
 * EMULATE_CAPABILITY, a compute capability ("10.0"; 9.0 without it), and EMULATE_WRONG, a product in a low-precision
 * format ("fp8", "fp8_block", "int8", "mxfp8", "nvfp4") that is to be wrong: it loses the last 64 columns, as a library
 * did (performance 6); or "rows", and a row's sums depend on its place in every product. With EMULATE_NO_SOLVER there
 * is no cuSOLVER, with EMULATE_NO_DEVICE no device; EMULATE_DRIVER is what the driver knows (12040 is CUDA 12.4; 0:
 * there is no driver). */
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
/* Ten times the compute capability. */
int emulate_capability(void);
/* Counts a launch; true when the device is lost. */
bool emulate_tick(void);

#ifdef __cplusplus
}
#endif
#endif
