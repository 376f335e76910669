//go:build !linux

package hostnet

import "fmt"

// Open fails: an interface is made on Linux alone so far.
func Open(Config) (*Device, error) {
	return nil, fmt.Errorf("%w: this system is not Linux", ErrUnavailable)
}
