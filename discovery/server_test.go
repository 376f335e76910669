package discovery

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// serve answers for a zone on one loopback port, over UDP and TCP, until the
// test ends.
func serve(t testing.TB, z Zone) (port int) {
	t.Helper()
	names := index(t, z)
	pc, ln := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- Serve(ctx, func() *Names { return names }, pc, ln, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().(*net.TCPAddr).Port
}

func listen(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if pc, err := net.ListenPacket("udp", ln.Addr().String()); err == nil {
			return pc, ln
		}
		ln.Close() // the port is taken for UDP
	}
	t.Fatal("no port is free for UDP and TCP")
	return nil, nil
}

func TestDig(t *testing.T) {
	_, err := exec.LookPath("dig")
	need(t, err == nil, "dig")
	port := serve(t, testZone(3))
	large := serve(t, testZone(1000))
	dig := func(port int, args string) string {
		t.Helper()
		cmd := exec.Command("dig", append([]string{"@127.0.0.1", "-p", fmt.Sprint(port), "+tries=2"}, strings.Fields(args)...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("dig %s: %v\n%s", args, err, out)
		}
		if strings.Contains(string(out), "Warning") || strings.Contains(string(out), "malformed") {
			t.Errorf("dig %s:\n%s", args, out)
		}
		return strings.TrimSpace(string(out))
	}
	const zone = "home.internal"
	qwen := `Qwen\0323\.5\032on\032node1._openai._tcp.` + zone
	addr := testMesh.Address(member(1)).String()
	for _, how := range []string{"+short ", "+short +tcp ", "+short +noedns ", "+short +bufsize=512 "} {
		for args, want := range map[string]string{
			"node1." + zone + " AAAA":                     addr,
			"-x " + addr:                                  "node1." + zone + ".",
			"lb._dns-sd._udp." + zone + " PTR":            zone + ".",
			"_services._dns-sd._udp." + zone + " PTR":     "_balance._tcp." + zone + ".\n_openai._tcp." + zone + ".",
			qwen + " SRV":                                 "0 0 8080 node1." + zone + ".",
			qwen + " TXT":                                 `"path=C:\\v1" "model=qwen"`,
			"node1." + zone + " A":                        "",
			zone + " NS":                                  "node0." + zone + ".",
			"+dnssec node1." + zone + " AAAA":             addr,
			"+nocookie -t AAAA NODE1." + zone + " +norec": addr,
		} {
			if got := dig(port, how+args); got != want {
				t.Errorf("dig %s%s:\n%s\nwant\n%s", how, args, got, want)
			}
		}
		browsed := dig(port, how+"_openai._tcp."+zone+" PTR")
		if n := strings.Count(browsed, "._openai._tcp."); n != 3 || !strings.Contains(browsed, qwen) {
			t.Errorf("browsing found\n%s", browsed)
		}
		if n := strings.Count(dig(large, how+"_openai._tcp."+zone+" PTR"), "\n") + 1; n != 1000 {
			t.Errorf("browsing a large mesh found %d services", n)
		}
	}
	for args, want := range map[string]string{
		"nobody." + zone:                               "status: NXDOMAIN",
		"example.com":                                  "status: REFUSED",
		"internal SOA":                                 "status: REFUSED",
		"-x 2001:db8::1":                               "status: REFUSED",
		zone + " ANY +notcp":                           "RFC8482",
		"+edns=1 +noednsneg " + zone:                   "status: BADVERS",
		zone + " +opcode=NOTIFY":                       "status: NOTIMP",
		"node1." + zone + " A":                         "ANSWER: 0, AUTHORITY: 1",
		"+ignore +notcp _openai._tcp." + zone + " PTR": "flags: qr aa tc rd",
	} {
		server := port
		if strings.Contains(args, "+ignore") {
			server = large
		}
		if got := dig(server, args); !strings.Contains(got, want) {
			t.Errorf("dig %s:\n%s\nwant %s", args, got, want)
		}
	}
	if got := dig(port, zone+" AXFR"); !strings.Contains(got, "Transfer failed") {
		t.Errorf("a transfer of the zone:\n%s", got)
	}
}

// Many clients at once, some of them silent, some of them never reading.
func TestManyClients(t *testing.T) {
	port := serve(t, testZone(100))
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	for range maxConns - 8 { // silent ones, which are thrown out in the end
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	var group errgroup.Group
	for i := range 8 {
		group.Go(func() error {
			for _, network := range []string{"udp", "tcp"} {
				c := dns.Client{Net: network, Timeout: 20 * time.Second, UDPSize: 1232}
				for j := range 50 {
					name := fmt.Sprintf("node%d.home.internal.", (i*50+j)%100)
					r, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeAAAA), addr)
					if err != nil || len(r.Answer) != 1 {
						return fmt.Errorf("%s over %s: %v %w", name, network, r, err)
					}
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

func TestBadStreams(t *testing.T) {
	port := serve(t, testZone(1))
	query := mustPack(new(dns.Msg).SetQuestion("node0.home.internal.", dns.TypeAAAA))
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	for name, stream := range map[string][]byte{
		"nothing":          {},
		"empty message":    {0, 0},
		"not a message":    {0, 3, 1, 2, 3},
		"half a message":   framed[:20],
		"longer than said": {0xff, 0xff, 1},
	} {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(stream)
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: read %x, %v", name, b, err)
		}
		c.Close()
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 { // several at once, in small pieces
		for _, b := range append(framed, framed...) {
			_, _ = c.Write([]byte{b})
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	framer := dns.Conn{Conn: c}
	for range 6 {
		if r, err := framer.ReadMsg(); err != nil || len(r.Answer) != 1 {
			t.Fatalf("pipelined queries: %v", err)
		}
	}
}

func TestServeEndsWhenASocketFails(t *testing.T) {
	names := index(t, testZone(1))
	for i := range 2 {
		pc, ln := listen(t)
		addr := ln.Addr().String()
		done := make(chan error)
		go func() {
			done <- Serve(t.Context(), func() *Names { return names }, pc, ln, slog.New(slog.DiscardHandler))
		}()
		[]io.Closer{pc, ln}[i].Close()
		if err := <-done; err == nil {
			t.Error("no error though a socket is closed")
		}
		again, err := net.Listen("tcp", addr)
		if err != nil {
			t.Errorf("the listener is still open: %v", err)
			continue
		}
		again.Close()
	}
}

func BenchmarkServe(b *testing.B) {
	port := serve(b, testZone(100))
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	query := mustPack(new(dns.Msg).SetQuestion("node50.home.internal.", dns.TypeAAAA))
	buf := make([]byte, 512)
	for b.Loop() {
		if _, err := c.Write(query); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
