package fleet

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/balanceai/balance/exec/policy"
)

// presence asks the system whether anybody is at the machine. root is the root
// of the file system.
func presence(root string) (c policy.Conditions) {
	since, err := idleSince()
	if err != nil {
		since, err = touched(root)
	}
	if err != nil {
		c.IdleWhy = err.Error()
	} else {
		c.Idle = max(0, time.Since(since))
	}
	battery, fed, err := power(root)
	if err != nil {
		c.BatteryWhy = err.Error()
	}
	c.Battery = battery && !fed
	return c
}

// idleSince asks logind, which counts desktops by what they tell and other
// sessions by their terminals. See org.freedesktop.login1(5).
func idleSince() (time.Time, error) {
	bus, err := dbus.ConnectSystemBus()
	if err != nil {
		return time.Time{}, err
	}
	defer func() { _ = bus.Close() }()
	const manager = "org.freedesktop.login1.Manager."
	login := bus.Object("org.freedesktop.login1", "/org/freedesktop/login1")
	hint, err := login.GetProperty(manager + "IdleHint")
	if err != nil {
		return time.Time{}, err
	}
	if idle, ok := hint.Value().(bool); !ok || !idle {
		return time.Now(), nil
	}
	since, err := login.GetProperty(manager + "IdleSinceHint")
	if err != nil {
		return time.Time{}, err
	}
	micros, ok := since.Value().(uint64)
	if !ok {
		return time.Time{}, errors.New("logind does not tell since when it is idle")
	}
	return time.UnixMicro(int64(micros)), nil
}

// touched returns when a terminal was last typed at: its access time, as in w(1).
func touched(root string) (last time.Time, err error) {
	for _, pattern := range []string{"dev/tty[0-9]*", "dev/pts/[0-9]*"} {
		list, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return last, err
		}
		for _, name := range list {
			info, err := os.Stat(name)
			if err != nil {
				continue // closed meanwhile
			}
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				if at := time.Unix(st.Atim.Unix()); at.After(last) {
					last = at
				}
			}
		}
	}
	if last.IsZero() {
		return last, errors.New("there is neither logind nor a terminal to look at")
	}
	return last, nil
}

// power reports whether the machine has a battery of its own, and whether
// something else feeds it. See Documentation/ABI/testing/sysfs-class-power.
func power(root string) (battery, fed bool, err error) {
	dir := filepath.Join(root, "sys/class/power_supply")
	supplies, err := os.ReadDir(dir)
	if err != nil {
		return false, false, err
	}
	for _, s := range supplies {
		file := func(name string) string { return readText(filepath.Join(dir, s.Name(), name)) }
		switch kind := file("type"); {
		case kind == "Battery" && file("scope") != "Device": // not that of a mouse
			battery = true
		case kind != "Battery" && file("online") == "1":
			fed = true
		}
	}
	return battery, fed, nil
}
