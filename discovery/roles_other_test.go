//go:build !linux

package discovery

const roleEnv = "DISCOVERY_TEST_ROLE"

// play does nothing: only Linux has network namespaces to play in.
func play(string) {}
