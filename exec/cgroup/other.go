//go:build !linux

package cgroup

import (
	"errors"
	"syscall"
)

// Base is where groups are made: nowhere but on Linux.
type Base struct{}

// Find finds nothing.
func Find(string) *Base { return &Base{} }

// Can tells that there are no groups.
func (*Base) Can() Can { return Can{} }

// Make fails.
func (*Base) Make(string, Limits) (*Group, error) { return nil, errors.ErrUnsupported }

// Left finds nothing.
func (*Base) Left() map[string]*Group { return nil }

// Start starts a process in no group.
func (*Group) Start(_ *syscall.SysProcAttr, start func() error) error { return start() }

// Kill kills nothing.
func (*Group) Kill() error { return nil }

// Freeze can not.
func (*Group) Freeze(bool) error { return errors.ErrUnsupported }

// Remove removes nothing.
func (*Group) Remove() error { return nil }

// Events tells of nothing.
func (*Group) Events() Events { return Events{} }

// Processes finds nothing.
func (*Group) Processes() []int { return nil }

// Usage is not measured.
func (*Group) Usage() Usage { return Usage{} }
