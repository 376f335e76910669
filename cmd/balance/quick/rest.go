//go:build cgo

package quick

// #include "quick.h"
import "C"

func init() {
	Rest.Run = C.GoString(&C.quick_rest.run[0])
	Rest.Last = uint64(C.quick_rest.last)
	Rest.Interrupted = C.quick_rest.interrupted != 0
	Rest.Unsure = C.quick_rest.unsure != 0
}
