package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// The D-Bus interface of systemd-resolved, org.freedesktop.resolve1(5).
const (
	resolved        = "org.freedesktop.resolve1"
	resolvedPath    = "/org/freedesktop/resolve1"
	resolvedManager = "org.freedesktop.resolve1.Manager"
	noSuchLink      = "org.freedesktop.resolve1.NoSuchLink"
	noOwner         = "org.freedesktop.DBus.Error.NameHasNoOwner"
	unknownService  = "org.freedesktop.DBus.Error.ServiceUnknown"
)

// linkPause is how long to wait for systemd-resolved to hear of an interface
// that was just made.
const linkPause = 100 * time.Millisecond

// Elements of the D-Bus types a(iayqs) and a(sb).
type (
	linkServer struct {
		Family int32
		Addr   []byte
		Port   uint16
		Name   string // for TLS
	}
	linkDomain struct {
		Name    string
		Routing bool // ask for names under it, but do not complete short names with it
	}
)

// SplitDNS has systemd-resolved ask server for what is under domains, and
// nothing else. The setting is the network interface's, and goes with it. Only
// root, or whom polkit allows, may do that. Version 249 of systemd or later is
// needed for a server on loopback.
func SplitDNS(ctx context.Context, ifindex int, server netip.AddrPort, domains []string) error {
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("no D-Bus: %w", err)
	}
	defer func() { _ = bus.Close() }()
	family := int32(unix.AF_INET6)
	if server.Addr().Is4() {
		family = unix.AF_INET
	}
	routing := []linkDomain{}
	for _, d := range domains {
		routing = append(routing, linkDomain{d, true})
	}
	manager := bus.Object(resolved, resolvedPath)
	// The server comes last, so that it is never asked for more than it should.
	for _, step := range []struct {
		method string
		arg    any
	}{
		{"SetLinkDefaultRoute", false},
		{"SetLinkDomains", routing},
		{"SetLinkDNSSEC", "no"}, // the names are signed by nobody: who answers is on this host
		{"SetLinkDNSOverTLS", "no"},
		{"SetLinkDNSEx", []linkServer{{family, server.Addr().AsSlice(), server.Port(), ""}}},
	} {
		if err := setLink(ctx, manager, step.method, ifindex, step.arg); err != nil {
			return err
		}
	}
	return nil
}

// setLink calls a method of the manager. It does not start systemd-resolved
// where that does not run.
func setLink(ctx context.Context, manager dbus.BusObject, method string, ifindex int, arg any) error {
	for {
		err := manager.CallWithContext(ctx, resolvedManager+"."+method, dbus.FlagNoAutoStart, int32(ifindex), arg).Err
		if err == nil {
			return nil
		}
		failure, _ := errors.AsType[dbus.Error](err)
		switch failure.Name {
		case noOwner, unknownService:
			return errors.New("systemd-resolved does not run")
		case noSuchLink:
		default:
			return fmt.Errorf("systemd-resolved: %s: %w", method, err)
		}
		select {
		case <-time.After(linkPause):
		case <-ctx.Done():
			return fmt.Errorf("systemd-resolved: %s: %w", method, err)
		}
	}
}
