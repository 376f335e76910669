//go:build !linux

package mesh

import "net"

const controlSize = 0

func offload(*net.UDPConn) (segments bool) { return false }

func refusesSegments(error) (refuses, all bool) { return false, false }

func segmentSize(int) []byte { return nil }

func segmentsOf([]byte) int { return 0 }
