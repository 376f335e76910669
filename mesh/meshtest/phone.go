package meshtest

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// Phone is a device that knows nothing of Balance: stock wireguard-go with a
// network stack of its own, set up by a file of wg-quick's.
type Phone struct {
	*netstack.Net

	Addr netip.Addr
	DNS  []netip.Addr
	dev  *device.Device
}

// NewPhone reads a configuration as wg-quick(8) and wg(8) describe it, and
// brings the device up. Another address than the configured one can be given,
// which an honest device would not use.
func NewPhone(config string, as netip.Addr) (*Phone, error) {
	p := &Phone{Addr: as}
	uapi, err := p.read(config)
	if err != nil {
		return nil, err
	}
	tun, stack, err := netstack.CreateNetTUN([]netip.Addr{p.Addr}, p.DNS, 1280)
	if err != nil {
		return nil, err
	}
	p.Net = stack
	p.dev = device.NewDevice(tun, conn.NewStdNetBind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
	if err := p.dev.IpcSet(uapi); err != nil {
		p.dev.Close()
		return nil, err
	}
	if err := p.dev.Up(); err != nil {
		p.dev.Close()
		return nil, err
	}
	return p, nil
}

// State returns what the device says of itself, in the protocol of
// https://www.wireguard.com/xplatform/.
func (p *Phone) State() (string, error) { return p.dev.IpcGet() }

// Close takes the device down.
func (p *Phone) Close() { p.dev.Close() }

// read translates the file for WireGuard's configuration protocol.
func (p *Phone) read(config string) (string, error) {
	var uapi strings.Builder
	section := ""
	for scan := bufio.NewScanner(strings.NewReader(config)); scan.Scan(); {
		line := strings.TrimSpace(scan.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '[' {
			section = line
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok {
			return "", fmt.Errorf("no line of a configuration: %q", line)
		}
		if err := p.setting(&uapi, section+name, value); err != nil {
			return "", fmt.Errorf("%s: %w", line, err)
		}
	}
	return uapi.String(), nil
}

func (p *Phone) setting(uapi *strings.Builder, name, value string) error {
	keys := map[string]string{"[Interface]PrivateKey": "private_key", "[Peer]PublicKey": "public_key", "[Peer]PresharedKey": "preshared_key"}
	switch name {
	case "[Interface]PrivateKey", "[Peer]PublicKey", "[Peer]PresharedKey":
		b, err := base64.StdEncoding.DecodeString(value)
		if err != nil || len(b) != 32 {
			return fmt.Errorf("no key: %w", err)
		}
		fmt.Fprintf(uapi, "%s=%s\n", keys[name], hex.EncodeToString(b))
	case "[Interface]Address":
		prefix, err := netip.ParsePrefix(value)
		if err != nil {
			return err
		}
		if !p.Addr.IsValid() {
			p.Addr = prefix.Addr()
		}
	case "[Interface]DNS":
		for s := range strings.SplitSeq(value, ",") {
			if server, err := netip.ParseAddr(strings.TrimSpace(s)); err == nil { // else a domain to search
				p.DNS = append(p.DNS, server)
			}
		}
	case "[Peer]Endpoint":
		fmt.Fprintf(uapi, "endpoint=%s\n", value)
	case "[Peer]AllowedIPs":
		fmt.Fprintf(uapi, "allowed_ip=%s\n", value)
	case "[Peer]PersistentKeepalive":
		fmt.Fprintf(uapi, "persistent_keepalive_interval=%s\n", value)
	case "[Interface]MTU":
	default:
		return fmt.Errorf("unknown setting %s", name)
	}
	return nil
}
