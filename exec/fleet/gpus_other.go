//go:build !linux && !darwin

package fleet

func gpuSources(string) []source { return nil }
