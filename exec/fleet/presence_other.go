//go:build !linux

package fleet

import "github.com/balanceai/balance/exec/policy"

func presence(string) policy.Conditions {
	const why = "not on this system yet"
	return policy.Conditions{IdleWhy: why, BatteryWhy: why}
}
