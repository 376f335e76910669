package isolate

import (
	"encoding/binary"
	"errors"
	"runtime"

	"golang.org/x/net/bpf"
)

// denied are the system calls of one architecture that no run gets.
type denied struct {
	audit   uint32   // the architecture, as the kernel names it: AUDIT_ARCH_…
	foreign uint32   // numbers from here on are of another kind (x32); 0 for none
	calls   []uint32 // that fail with EPERM
	absent  []uint32 // that fail with ENOSYS, so that the C library takes another way
	clone   uint32   // its flags are looked at
	socket  uint32   // its family is
	ioctl   uint32   // its request is
}

// What the kernel gives to a filter, see seccomp(2): struct seccomp_data. Of the
// arguments, which have 64 bits, only the lower half is needed.
const (
	dataNumber = 0
	dataArch   = 4
	dataArg0   = 16
	dataArg1   = 24
)

// What a filter answers.
const (
	answerAllow = 0x7fff0000
	answerKill  = 0x80000000 // the process
	answerError = 0x00050000 // with an errno added
	errPerm     = 1
	errNoSys    = 38
)

// namespaceFlags are those of clone(2) that make a namespace.
const namespaceFlags = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

// families are the kinds of sockets that there are for a run: UNIX, IPv4, IPv6,
// and netlink, which tells it its own addresses. Others are not bound by the
// network namespace, as vsock, or are entrances to the kernel that hardly
// anybody uses.
var families = []uint32{1, 2, 10, 16}

// terminalRequests put characters into a terminal as if somebody had typed them:
// TIOCSTI and TIOCLINUX.
var terminalRequests = []uint32{0x5412, 0x541c}

// Filter assembles the filter of system calls for this program's architecture,
// in the form that the kernel takes. It forbids what is known to be dangerous and
// not needed, rather than to allow what is known: programs that people bring must
// run, and the namespaces do not depend on it.
func Filter() ([]byte, error) {
	if calls.audit == 0 {
		return nil, errors.New("no filter of system calls for " + runtime.GOARCH)
	}
	raw, err := bpf.Assemble(calls.program())
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, in := range raw { // struct sock_filter
		out = binary.NativeEndian.AppendUint16(out, in.Op)
		out = append(out, in.Jt, in.Jf)
		out = binary.NativeEndian.AppendUint32(out, in.K)
	}
	return out, nil
}

func (d denied) program() []bpf.Instruction {
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: d.audit, SkipTrue: 1},
		bpf.RetConstant{Val: answerKill},
		bpf.LoadAbsolute{Off: dataNumber, Size: 4},
	}
	if d.foreign > 0 {
		p = append(p,
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: d.foreign, SkipTrue: 1},
			bpf.RetConstant{Val: answerError | errNoSys})
	}
	for _, nr := range d.calls {
		p = append(p, refuse(nr, errPerm)...)
	}
	for _, nr := range d.absent {
		p = append(p, refuse(nr, errNoSys)...)
	}
	p = append(p, look(d.clone, dataArg0,
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: namespaceFlags, SkipFalse: 1},
		bpf.RetConstant{Val: answerError | errPerm},
		bpf.RetConstant{Val: answerAllow})...)
	var kinds []bpf.Instruction
	for i, f := range families {
		kinds = append(kinds, bpf.JumpIf{Cond: bpf.JumpEqual, Val: f, SkipTrue: uint8(len(families) - i)})
	}
	p = append(p, look(d.socket, dataArg0, append(kinds, bpf.RetConstant{Val: answerError | errPerm}, bpf.RetConstant{Val: answerAllow})...)...)
	var requests []bpf.Instruction
	for _, r := range terminalRequests {
		requests = append(requests, refuse(r, errPerm)...)
	}
	p = append(p, look(d.ioctl, dataArg1, append(requests, bpf.RetConstant{Val: answerAllow})...)...)
	return append(p, bpf.RetConstant{Val: answerAllow})
}

// refuse answers with an error where the loaded value is val.
func refuse(val, errno uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: val, SkipFalse: 1},
		bpf.RetConstant{Val: answerError | errno},
	}
}

// look loads an argument of the system call nr and goes on with then, which
// answers in any case.
func look(nr, arg uint32, then ...bpf.Instruction) []bpf.Instruction {
	return append([]bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: nr, SkipFalse: uint8(len(then) + 1)},
		bpf.LoadAbsolute{Off: arg, Size: 4},
	}, then...)
}
