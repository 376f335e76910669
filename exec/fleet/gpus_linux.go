package fleet

// gpuSources returns the drivers of GPUs that this build knows.
func gpuSources(root string) []source {
	return append(nvidiaSources(), newDRM(root))
}
