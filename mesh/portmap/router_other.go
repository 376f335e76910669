//go:build !linux && !darwin && !freebsd && !netbsd && !openbsd

package portmap

// defaultRouter finds none: this system is not asked for its routes.
func defaultRouter() (Router, error) { return Router{}, errNone }
