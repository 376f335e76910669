//go:build !linux

package mesh

import "net/netip"

// sendWhole does nothing: packets are as small as every network carries.
func (s *socket) sendWhole([]byte, netip.AddrPort) {}
