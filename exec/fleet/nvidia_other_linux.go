//go:build !cgo

package fleet

// nvidiaSources is empty: the binding of NVIDIA's library needs cgo.
func nvidiaSources() []source { return nil }
