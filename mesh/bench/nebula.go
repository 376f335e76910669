package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// nebula is a program beside the project, above a TUN interface of its own. The
// server makes the keys of both ends: its name is the folder that holds them.
type nebula struct {
	host
	tools  tools
	cipher string
	udp    uint16 // port
	folder string // of the server
	cmd    *exec.Cmd
}

// nebulaMTU is what nebula's example configuration has, in bytes.
const nebulaMTU = 1300

// openNebula opens an end of a network whose addresses are 10.79.NET.x.
func openNebula(place int, t tools, cipher string, net byte, udp uint16) (network, error) {
	n := &nebula{tools: t, cipher: cipher, udp: udp, folder: filepath.Join(t.folder, cipher)}
	n.self = place
	for i := range n.addrs {
		n.addrs[i] = netip.AddrFrom4([4]byte{10, 79, net, byte(i + 1)})
	}
	if place != server {
		return n, nil
	}
	if err := os.Mkdir(n.folder, 0o700); err != nil {
		return nil, err
	}
	if err := n.cert("ca", "-name", "bench", "-out-crt", n.file("ca.crt"), "-out-key", n.file("ca.key")); err != nil {
		return nil, err
	}
	for i, addr := range n.addrs {
		name := placeNames[i]
		err := n.cert("sign", "-ca-crt", n.file("ca.crt"), "-ca-key", n.file("ca.key"), "-name", name,
			"-networks", netip.PrefixFrom(addr, 24).String(), "-out-crt", n.file(name+".crt"), "-out-key", n.file(name+".key"))
		if err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *nebula) file(name string) string { return filepath.Join(n.folder, name) }

// cert runs nebula's other program, which comes in the same folder.
func (n *nebula) cert(args ...string) error {
	out, err := exec.Command(filepath.Join(filepath.Dir(n.tools.nebula), "nebula-cert"), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("nebula-cert %s: %w: %s", args[0], err, out)
	}
	return nil
}

// connect starts nebula, and waits for its address.
func (n *nebula) connect([]string) error {
	name := placeNames[n.self]
	if err := os.WriteFile(n.file(name+".yaml"), []byte(n.config()), 0o600); err != nil {
		return err
	}
	log, err := os.Create(n.file(name + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	n.cmd = exec.Command(n.tools.nebula, "-config", n.file(name+".yaml"))
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := n.cmd.Start(); err != nil {
		return err
	}
	for range 100 {
		if l, err := n.listen(); err == nil {
			return l.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	said, _ := os.ReadFile(log.Name())
	n.close()
	return fmt.Errorf("nebula does not start: %s", said)
}

func (n *nebula) config() string {
	name, other := placeNames[n.self], 1-n.self
	return strings.NewReplacer(
		"CA", n.file("ca.crt"), "CERT", n.file(name+".crt"), "KEY", n.file(name+".key"), "CIPHER", n.cipher,
		"OTHER", n.addrs[other].String(), "AT", netip.AddrPortFrom(underlay[other], n.udp).String(),
		"PORT", fmt.Sprint(n.udp), "DEVICE", fmt.Sprintf("nebula%d", n.udp%10), "MTU", fmt.Sprint(nebulaMTU),
	).Replace(`
pki: { ca: CA, cert: CERT, key: KEY }
static_host_map: { "OTHER": ["AT"] }
lighthouse: { am_lighthouse: false, hosts: [] }
listen: { host: 0.0.0.0, port: PORT }
cipher: CIPHER
tun: { dev: DEVICE, mtu: MTU }
logging: { level: error, format: text }
firewall:
  outbound: [{ port: any, proto: any, host: any }]
  inbound: [{ port: any, proto: any, host: any }]
`)
}

func (n *nebula) process() int { return n.cmd.Process.Pid }

func (n *nebula) close() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait() // it was killed
	}
}
