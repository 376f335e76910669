package store

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

func TestAddrs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	s := openAt(t, path, 1)
	at := func(n int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 7000)
	}
	start := time.UnixMilli(1_700_000_000_000)
	a, b := key(2).ID(), key(3).ID()
	for i := range 12 {
		if err := s.SaveAddr(t.Context(), a, at(i), start.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SaveAddr(t.Context(), a, netip.AddrPort{}, start); err == nil {
		t.Error("no address was saved as one")
	}
	v6 := netip.MustParseAddrPort("[fe80::1%eth0]:9")
	for range 2 {
		if err := s.SaveAddr(t.Context(), b, v6, start); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SaveAddr(t.Context(), a, at(5), start.Add(time.Hour)); err != nil { // seen again
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, path, 1)
	list, err := s.Addrs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != maxAddrs+1 || list[0] != (Addr{a, at(5), start.Add(time.Hour)}) || list[1].Addr != at(11) || list[maxAddrs] != (Addr{b, v6, start}) {
		t.Errorf("addresses: %v", list)
	}
}

func TestSettings(t *testing.T) {
	s := newStore(t, 1)
	if v, err := s.Setting(t.Context(), "port"); err != nil || v != "" {
		t.Errorf("setting that is not there: %q %v", v, err)
	}
	for _, want := range []string{"7000", "7001", ""} {
		if err := s.SetSetting(t.Context(), "port", want); err != nil {
			t.Fatal(err)
		}
		if v, err := s.Setting(t.Context(), "port"); err != nil || v != want {
			t.Errorf("setting: %q %v", v, err)
		}
	}
}

func TestDoors(t *testing.T) {
	s := newStore(t, 1)
	d := Door{Join: key(2).ID(), WG: identity.WGPublic{1, 2}, PSK: [32]byte{0xaa, 0xbb, 0xcc}, Expires: time.UnixMilli(1_700_000_000_000)}
	for range 2 {
		if err := s.SaveDoor(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.Doors(t.Context())
	if err != nil || !reflect.DeepEqual(list, []Door{d}) {
		t.Errorf("doors: %v %v", list, err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if text := strings.ToLower(fmt.Sprintf(verb, d)); strings.Contains(text, "aabbcc") || strings.Contains(text, "170 187") || strings.Contains(text, "0xaa") {
			t.Errorf("%s prints the secret: %s", verb, text)
		}
	}
	for range 2 {
		if err := s.DropDoor(t.Context(), d.Join); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := s.Doors(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("doors after drop: %v %v", list, err)
	}
}
