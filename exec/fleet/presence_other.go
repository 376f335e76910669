//go:build !linux

package fleet

import (
	"errors"

	"github.com/balanceai/balance/exec/policy"
)

const notHere = "not on this system yet"

func presence(string) policy.Conditions {
	return policy.Conditions{IdleWhy: notHere, BatteryWhy: notHere}
}

func power(string) (battery, fed bool, err error) { return false, false, errors.New(notHere) }
