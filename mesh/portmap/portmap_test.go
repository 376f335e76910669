package portmap

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var external = netip.MustParseAddr("203.0.113.7")

// fakeRouter answers on a port of the loopback interface.
type fakeRouter struct {
	at netip.AddrPort

	mu   sync.Mutex
	asks [][]byte
}

func newFakeRouter(t *testing.T, answer func(request []byte) []byte) *fakeRouter {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeRouter{at: addrPort(c.LocalAddr())}
	done := make(chan struct{})
	t.Cleanup(func() { _ = c.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, maxPCP)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			request := slices.Clone(buf[:n])
			f.mu.Lock()
			f.asks = append(f.asks, request)
			first := len(f.asks) == 1
			f.mu.Unlock()
			if first {
				continue // the first one is lost
			}
			if b := answer(request); b != nil {
				_, _ = c.WriteToUDPAddrPort([]byte("noise"), from)
				_, _ = c.WriteToUDPAddrPort(b, from)
			}
		}
	}()
	return f
}

func (f *fakeRouter) last() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asks[len(f.asks)-1]
}

// speakPCP answers as a router with PCP that gives another port than was wished
// for.
func speakPCP(request []byte) []byte {
	if request[0] != pcpVersion || len(request) != pcpMapLen {
		return []byte{pcpVersion, request[1] | opAnswer, 0, 1}
	}
	b := slices.Clone(request)
	b[1] |= opAnswer
	b[2], b[3] = 0, 0
	clear(b[8:24]) // epoch, reserved
	binary.BigEndian.PutUint16(b[42:], 7777)
	ip := netip.AddrFrom16(external.As16()).As16()
	copy(b[44:], ip[:])
	return b
}

// speakNATPMP answers as a router that knows NAT-PMP alone.
func speakNATPMP(request []byte) []byte {
	switch {
	case request[0] != natpmpVersion:
		return []byte{natpmpVersion, request[1] | opAnswer, 0, 1, 0, 0, 0, 9}
	case request[1] == opExternal:
		ip := external.As4()
		return append([]byte{natpmpVersion, opAnswer, 0, 0, 0, 0, 0, 9}, ip[:]...)
	}
	b := []byte{natpmpVersion, opMap | opAnswer, 0, 0, 0, 0, 0, 9}
	b = append(b, request[4:6]...)
	b = binary.BigEndian.AppendUint16(b, 7777)
	return append(b, request[8:12]...)
}

func TestAskPCP(t *testing.T) {
	for _, c := range []struct {
		protocol string
		speak    func([]byte) []byte
		life     func(last []byte) uint32 // of the last request
	}{
		{PCP, speakPCP, func(b []byte) uint32 { return binary.BigEndian.Uint32(b[4:]) }},
		{NATPMP, speakNATPMP, func(b []byte) uint32 { return binary.BigEndian.Uint32(b[8:]) }},
	} {
		t.Run(c.protocol, func(t *testing.T) {
			r := newFakeRouter(t, c.speak)
			l, err := askPCP(t.Context(), r.at, 41841, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := Mapping{c.protocol, netip.AddrPortFrom(external, 7777)}
			if l.Mapping != want || l.life != lifetime {
				t.Errorf("got %+v for %v, want %v", l.Mapping, l.life, want)
			}
			again, err := askPCP(t.Context(), r.at, 41841, l)
			if err != nil || again.Mapping != want || again.nonce != l.nonce {
				t.Errorf("renewed: %+v, %v", again, err)
			}
			again.release(t.Context())
			for end := time.Now().Add(30 * time.Second); c.life(r.last()) != 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("not given back: %x", r.last())
				}
			}
		})
	}
}

func TestAskPCPRefused(t *testing.T) {
	r := newFakeRouter(t, func(request []byte) []byte {
		b := speakPCP(request)
		b[3] = 2 // NOT_AUTHORIZED
		return b
	})
	if l, err := askPCP(t.Context(), r.at, 41841, nil); err == nil {
		t.Errorf("got %+v", l)
	}
}

func TestAskPCPCancelled(t *testing.T) {
	r := newFakeRouter(t, func([]byte) []byte { return nil })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := askPCP(ctx, r.at, 41841, nil); err == nil {
		t.Error("no error")
	}
}

// igd is a router with UPnP.
type igd struct {
	permanent bool // it knows no leases

	mu    sync.Mutex
	calls []string
}

var argument = regexp.MustCompile(`<(New\w+)>([^<]*)<`)

func (g *igd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		fmt.Fprint(w, `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device><deviceList><device>
<deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>/control</controlURL>
</service></serviceList></device></deviceList></device></root>`)
		return
	}
	_, action, _ := strings.Cut(strings.Trim(r.Header.Get("Soapaction"), `"`), "#")
	body, _ := io.ReadAll(r.Body)
	args := map[string]string{}
	for _, m := range argument.FindAllStringSubmatch(string(body), -1) {
		args[m[1]] = m[2]
	}
	g.mu.Lock()
	g.calls = append(g.calls, fmt.Sprintf("%s %s/%s → %s for %s", action, args["NewProtocol"], args["NewExternalPort"], args["NewInternalClient"], args["NewLeaseDuration"]))
	g.mu.Unlock()
	in := ""
	switch {
	case action == "GetExternalIPAddress":
		in = "<NewExternalIPAddress>" + external.String() + "</NewExternalIPAddress>"
	case action == "AddPortMapping" && g.permanent && args["NewLeaseDuration"] != "0":
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode>
<faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>725</errorCode>
</UPnPError></detail></s:Fault></s:Body></s:Envelope>`)
		return
	}
	fmt.Fprintf(w, `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>
<u:%[1]sResponse xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">%[2]s</u:%[1]sResponse></s:Body></s:Envelope>`, action, in)
}

func TestAskGateway(t *testing.T) {
	local := netip.MustParseAddr("127.0.0.1")
	for _, permanent := range []bool{false, true} {
		g := &igd{permanent: permanent}
		server := httptest.NewServer(g)
		defer server.Close()
		at, err := url.Parse(server.URL + "/description.xml")
		if err != nil {
			t.Fatal(err)
		}
		l, err := askGateway(t.Context(), at, Router{local, local}, 41841)
		if err != nil {
			t.Fatal(err)
		}
		if want := (Mapping{UPnP, netip.AddrPortFrom(external, 41841)}); l.Mapping != want {
			t.Errorf("got %v, want %v", l.Mapping, want)
		}
		l.release(t.Context())
		want := []string{"GetExternalIPAddress / →  for ", "AddPortMapping UDP/41841 → 127.0.0.1 for 7200"}
		if permanent {
			want = append(want, "AddPortMapping UDP/41841 → 127.0.0.1 for 0")
		}
		want = append(want, "DeletePortMapping UDP/41841 →  for ")
		if !slices.Equal(g.calls, want) {
			t.Errorf("permanent %v: asked %q", permanent, g.calls)
		}
		if _, err := askGateway(t.Context(), at, Router{netip.MustParseAddr("127.0.0.9"), local}, 41841); err == nil {
			t.Error("a host that is not the router is believed")
		}
	}
}

// A mapping is renewed at half its life, asked for anew in another network, and
// given back at the end.
func TestMapper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		router := Router{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("192.168.1.5")}
		var mu sync.Mutex // guards what follows
		wanted, answers := true, true
		var asked []*lease
		released := 0
		m := start(Config{
			Port: 41841, Log: slog.New(slog.DiscardHandler), Wanted: func() bool { mu.Lock(); defer mu.Unlock(); return wanted },
		}, func() (Router, error) { mu.Lock(); defer mu.Unlock(); return router, nil }, func(_ context.Context, _ Router, port uint16, before *lease) (*lease, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, before)
			if !answers {
				return nil, errNone
			}
			return &lease{Mapping: Mapping{PCP, netip.AddrPortFrom(external, port)}, life: lifetime, release: func(context.Context) { released++ }}, nil
		})
		expect := func(what string, n int, has bool) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(asked) != n || (m.Current() != Mapping{}) != has {
				t.Fatalf("%s: asked %d times, mapping %v", what, len(asked), m.Current())
			}
		}
		expect("start", 1, true)
		time.Sleep(lifetime/2 + time.Second)
		expect("renewal", 2, true)
		if asked[1] == nil {
			t.Error("the renewal does not know what it renews")
		}
		set := func(change func()) { mu.Lock(); defer mu.Unlock(); change() }
		set(func() { router.Addr = router.Addr.Next() })
		m.Again()
		expect("another network", 3, true)
		if asked[2] != nil {
			t.Error("another router is asked for what the first one gave")
		}
		set(func() { answers = false })
		m.Again()
		expect("a router that does not answer", 4, false)
		set(func() { answers = true })
		time.Sleep(tryAgain + time.Second)
		expect("it answers again", 5, true)
		set(func() { wanted = false })
		m.Again()
		expect("not needed any more", 5, false)
		set(func() { wanted = true })
		m.Again()
		expect("needed again", 6, true)
		m.Close()
		if released != 1 {
			t.Errorf("given back %d times", released)
		}
	})
}

func FuzzParse(f *testing.F) {
	want := mapRequest{client: netip.MustParseAddr("192.168.1.5"), port: 41841, external: 41841, life: lifetime}
	f.Add(speakPCP(want.pcp()))
	f.Add(speakNATPMP(want.natpmp()))
	f.Add(speakNATPMP([]byte{natpmpVersion, opExternal}))
	f.Add(speakNATPMP(want.pcp()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := parsePCP(b, want); ok && a.version == pcpVersion && a.result == 0 && len(b) < pcpMapLen {
			t.Errorf("%x is no answer", b)
		}
		parseNATPMP(b, want.port)
		parseExternal(b)
	})
}
