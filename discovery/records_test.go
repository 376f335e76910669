package discovery

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"pgregory.net/rapid"

	"github.com/balanceai/balance/mesh/identity"
)

var testMesh = identity.MeshID{0xab, 0xcd, 0xef, 1, 2, 3}

// testZone has n nodes, each with the services of a node that serves a model.
func testZone(n int) Zone {
	z := Zone{Mesh: "home", Self: "node0", Prefix: testMesh.Prefix()}
	for i := range n {
		name := fmt.Sprintf("node%d", i)
		z.Hosts = append(z.Hosts, Host{name, testMesh.Address(member(i))})
		z.Services = append(
			z.Services,
			Service{Instance: name, Type: "_balance._tcp", Host: name, Port: 1, Text: []string{"offer=/v1/offer"}},
			Service{Instance: "Qwen 3.5 on " + name, Type: "_openai._tcp", Host: name, Port: 8080, Text: []string{`path=C:\v1`, "model=qwen"}},
		)
	}
	return z
}

func index(t testing.TB, z Zone) *Names {
	t.Helper()
	n, leftOut := z.Index()
	for _, err := range leftOut {
		t.Error(err)
	}
	return n
}

// ask puts a question to the names as a resolver does.
func ask(t testing.TB, n *Names, name string, qtype uint16) *dns.Msg {
	t.Helper()
	return exchange(t, n, new(dns.Msg).SetQuestion(name, qtype), true)
}

func exchange(t testing.TB, n *Names, q *dns.Msg, tcp bool) *dns.Msg {
	t.Helper()
	b := n.reply(mustPack(q), tcp)
	if b == nil {
		t.Fatalf("no reply to %v", q)
	}
	r := new(dns.Msg)
	if err := r.Unpack(b); err != nil {
		t.Fatalf("reply to %v: %v", q, err)
	}
	return r
}

// show is the answers of a reply, as the end of their text, or its code.
func show(r *dns.Msg) string {
	if len(r.Answer) == 0 {
		if len(r.Ns) == 1 && r.Ns[0].Header().Rrtype == dns.TypeSOA && r.Rcode == dns.RcodeSuccess {
			return "NODATA"
		}
		return dns.RcodeToString[r.Rcode]
	}
	var out []string
	for _, rr := range r.Answer {
		out = append(out, dns.TypeToString[rr.Header().Rrtype]+" "+strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(out, "\n")
}

func TestAnswers(t *testing.T) {
	n := index(t, testZone(2))
	addr0 := testMesh.Address(member(0))
	arpa, _ := dns.ReverseAddr(addr0.String())
	const zone = "home.internal."
	qwen := `Qwen\ 3\.5\ on\ node0._openai._tcp.` + zone
	tests := []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"node0." + zone, dns.TypeAAAA, "AAAA " + addr0.String()},
		{"NODE0.Home.INTERNAL.", dns.TypeAAAA, "AAAA " + addr0.String()},
		{"node0." + zone, dns.TypeA, "NODATA"},
		{"nobody." + zone, dns.TypeAAAA, "NXDOMAIN"},
		{"x.node0." + zone, dns.TypeAAAA, "NXDOMAIN"},
		{arpa, dns.TypePTR, "PTR node0." + zone},
		{arpa, dns.TypeAAAA, "NODATA"},
		{strings.Repeat("0.", 20) + "1.0." + n.reverse, dns.TypePTR, "NXDOMAIN"},
		{arpa[len("0."):], dns.TypePTR, "NODATA"}, // only longer names exist
		{n.reverse[len("0."):], dns.TypePTR, "REFUSED"},
		{zone, dns.TypeSOA, "SOA node0.home.internal. hostmaster.home.internal. 1 3600 600 86400 5"},
		{zone, dns.TypeNS, "NS node0." + zone},
		{zone, dns.TypeAAAA, "NODATA"},
		{n.reverse, dns.TypeNS, "NS node0." + zone},
		{"b._dns-sd._udp." + zone, dns.TypePTR, "PTR " + zone},
		{"lb._dns-sd._udp." + zone, dns.TypePTR, "PTR " + zone},
		{"db._dns-sd._udp." + zone, dns.TypePTR, "PTR " + zone},
		{"_dns-sd._udp." + zone, dns.TypePTR, "NODATA"},
		{"_udp." + zone, dns.TypePTR, "NODATA"},
		{"_services._dns-sd._udp." + zone, dns.TypePTR, "PTR _balance._tcp." + zone + "\nPTR _openai._tcp." + zone},
		{"_agent._tcp." + zone, dns.TypePTR, "NXDOMAIN"},
		{"_OpenAI._tcp." + zone, dns.TypePTR, "PTR " + qwen + "\nPTR " + strings.Replace(qwen, "node0", "node1", 1)},
		{qwen, dns.TypeSRV, "SRV 0 0 8080 node0." + zone},
		{strings.ToUpper(qwen), dns.TypeSRV, "SRV 0 0 8080 node0." + zone},
		{qwen, dns.TypeTXT, `TXT "path=C:\\v1" "model=qwen"`},
		{qwen, dns.TypeANY, `HINFO "RFC8482" ""`},
		{"_udp." + zone, dns.TypeANY, "NODATA"},
		{"nobody." + zone, dns.TypeANY, "NXDOMAIN"},
		{zone, dns.TypeAXFR, "REFUSED"},
		{zone, dns.TypeIXFR, "REFUSED"},
		{"internal.", dns.TypeSOA, "REFUSED"},
		{"example.com.", dns.TypeA, "REFUSED"},
		{"nothome.internal.", dns.TypeA, "REFUSED"},
		{`x\.home.internal.`, dns.TypeA, "REFUSED"},
		{".", dns.TypeNS, "REFUSED"},
	}
	for _, tt := range tests {
		r := ask(t, n, tt.name, tt.qtype)
		if got := show(r); !strings.EqualFold(got, tt.want) {
			t.Errorf("%s %s:\n%s\nwant\n%s", tt.name, dns.TypeToString[tt.qtype], got, tt.want)
		}
		if r.Question[0].Name != tt.name {
			t.Errorf("the question %s came back as %s", tt.name, r.Question[0].Name)
		}
		if r.Authoritative == (r.Rcode == dns.RcodeRefused) || r.RecursionAvailable {
			t.Errorf("%s: header %+v", tt.name, r.MsgHdr)
		}
		if r.Rcode == dns.RcodeNameError && (len(r.Ns) != 1 || r.Ns[0].Header().Rrtype != dns.TypeSOA) {
			t.Errorf("%s: no SOA with NXDOMAIN", tt.name)
		}
	}
}

// Who asks for a service gets what it will ask for next.
func TestRelatedRecords(t *testing.T) {
	n := index(t, testZone(2))
	for q, want := range map[dns.Question]string{
		question("_openai._tcp.home.internal.", dns.TypePTR, dns.ClassINET):                       "SRV AAAA TXT SRV AAAA TXT",
		question(`Qwen\ 3\.5\ on\ node1._openai._tcp.home.internal.`, dns.TypeSRV, dns.ClassINET): "AAAA",
		question("home.internal.", dns.TypeNS, dns.ClassINET):                                     "AAAA",
		question("node1.home.internal.", dns.TypeAAAA, dns.ClassINET):                             "",
		question("_services._dns-sd._udp.home.internal.", dns.TypePTR, dns.ClassINET):             "",
	} {
		if got := typeNames(ask(t, n, q.Name, q.Qtype).Extra); got != want {
			t.Errorf("%s: %q is added, want %q", q.Name, got, want)
		}
	}
}

func TestWhatIsLeftOut(t *testing.T) {
	good := Service{Instance: "x", Type: "_a._tcp", Host: "node0", Port: 1}
	tests := map[string]func(*Zone, *Service){
		"empty instance":      func(_ *Zone, s *Service) { s.Instance = "" },
		"long instance":       func(_ *Zone, s *Service) { s.Instance = strings.Repeat("é", 32) },
		"control character":   func(_ *Zone, s *Service) { s.Instance = "a\nb" },
		"not UTF-8":           func(_ *Zone, s *Service) { s.Instance = "a\xff" },
		"no type":             func(_ *Zone, s *Service) { s.Type = "" },
		"type of one part":    func(_ *Zone, s *Service) { s.Type = "_a" },
		"unknown protocol":    func(_ *Zone, s *Service) { s.Type = "_a._sctp" },
		"long type":           func(_ *Zone, s *Service) { s.Type = "_abcdefghijklmnop._tcp" },
		"type of digits":      func(_ *Zone, s *Service) { s.Type = "_123._tcp" },
		"type with hyphens":   func(_ *Zone, s *Service) { s.Type = "_a--b._tcp" },
		"type with a dot":     func(_ *Zone, s *Service) { s.Type = "_a.b._tcp" },
		"another host's name": func(_ *Zone, s *Service) { s.Host = "nobody" },
		"host out of the zone": func(_ *Zone, s *Service) {
			s.Host = "_tcp"
		},
		"no port":             func(_ *Zone, s *Service) { s.Port = 0 },
		"long text":           func(_ *Zone, s *Service) { s.Text = []string{strings.Repeat("x", 256)} },
		"much text":           func(_ *Zone, s *Service) { s.Text = slices.Repeat([]string{strings.Repeat("x", 255)}, 6) },
		"instance taken":      func(z *Zone, s *Service) { z.Services = []Service{good}; s.Instance = "X" },
		"address of another":  func(z *Zone, s *Service) { z.Hosts[0].Addr = netip.MustParseAddr("2001:db8::1") },
		"address of IPv4":     func(z *Zone, s *Service) { z.Hosts[0].Addr = netip.MustParseAddr("10.0.0.1") },
		"invalid host":        func(z *Zone, s *Service) { z.Hosts[0].Name = "Node 0" },
		"prefix of odd width": func(z *Zone, _ *Service) { z.Prefix = netip.PrefixFrom(z.Prefix.Addr(), 47) },
	}
	for name, change := range tests {
		z := testZone(1)
		z.Services = nil
		s := good
		change(&z, &s)
		z.Services = append(z.Services, s)
		n, leftOut := z.Index()
		if len(leftOut) == 0 {
			t.Errorf("%s: nothing is left out", name)
		}
		if r := ask(t, n, "home.internal.", dns.TypeSOA); len(r.Answer) != 1 {
			t.Errorf("%s: the rest is gone too", name)
		}
	}
	z := testZone(1)
	z.Hosts = append(z.Hosts, Host{"node0", testMesh.Address(member(5))})
	if _, leftOut := z.Index(); len(leftOut) != 1 {
		t.Errorf("two nodes of one name: left out %v", leftOut)
	}
}

// Any instance name that is valid can be browsed and resolved, whatever
// characters are in it.
func TestInstanceNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringN(1, 20, 63).Draw(t, "instance")
		z := testZone(1)
		z.Services = []Service{{Instance: name, Type: "_a._tcp", Host: "node0", Port: 7}}
		n, leftOut := z.Index()
		if len(leftOut) > 0 {
			t.Skip("not a valid name")
		}
		reply := func(qname string, qtype uint16) dns.RR {
			var r dns.Msg
			if err := r.Unpack(n.reply(mustPack(new(dns.Msg).SetQuestion(qname, qtype)), false)); err != nil || len(r.Answer) != 1 {
				t.Fatalf("%s: %v %v", qname, r.String(), err)
			}
			return r.Answer[0]
		}
		target := reply("_a._tcp.home.internal.", dns.TypePTR).(*dns.PTR).Ptr
		var wire [256]byte
		if _, err := dns.PackDomainName(target, wire[:], 0, nil, false); err != nil {
			t.Fatal(err)
		}
		if got := string(wire[1 : 1+wire[0]]); got != name {
			t.Errorf("the instance %q is browsed as %q", name, got)
		}
		if srv := reply(target, dns.TypeSRV).(*dns.SRV); srv.Port != 7 {
			t.Errorf("%q resolves to %v", name, srv)
		}
	})
}

func TestLargeMesh(t *testing.T) {
	const nodes = 1000
	n := index(t, testZone(nodes))
	r := ask(t, n, "_openai._tcp.home.internal.", dns.TypePTR)
	if len(r.Answer) != nodes || r.Truncated {
		t.Errorf("%d of %d services over TCP, cut: %v", len(r.Answer), nodes, r.Truncated)
	}
	for i := range nodes {
		if got := show(ask(t, n, fmt.Sprintf("node%d.home.internal.", i), dns.TypeAAAA)); got != "AAAA "+testMesh.Address(member(i)).String() {
			t.Fatalf("node%d: %s", i, got)
		}
	}
}

func TestSizes(t *testing.T) {
	n := index(t, testZone(20))
	for _, size := range []uint16{0, 100, 512, 700, 1232, 4096, 65535} {
		q := new(dns.Msg).SetQuestion("_openai._tcp.home.internal.", dns.TypePTR)
		limit := 512
		if size > 0 {
			q.SetEdns0(size, true)
			limit = min(max(int(size), 512), maxUDP)
		}
		b := n.reply(mustPack(q), false)
		r := exchange(t, n, q, false)
		if len(b) > limit {
			t.Errorf("%d bytes for a client that takes %d", len(b), size)
		}
		if fits := limit >= 1000; r.Truncated == fits {
			t.Errorf("a client that takes %d: cut %v", size, r.Truncated)
		}
		opt := r.IsEdns0()
		if (opt != nil) != (size > 0) || opt != nil && (!opt.Do() || opt.UDPSize() != maxUDP) {
			t.Errorf("a client that takes %d: OPT %v", size, opt)
		}
	}
	// What was not asked for is no reason to say that the reply is cut.
	z := testZone(1)
	z.Services[0].Text = []string{strings.Repeat("x", 250), strings.Repeat("y", 250)}
	r := exchange(t, index(t, z), new(dns.Msg).SetQuestion("_balance._tcp.home.internal.", dns.TypePTR), false)
	if r.Truncated || len(r.Answer) != 1 || len(r.Extra) != 0 {
		t.Errorf("cut %v, %d answers, %d more", r.Truncated, len(r.Answer), len(r.Extra))
	}
}

func TestOddMessages(t *testing.T) {
	n := index(t, testZone(1))
	base := func() *dns.Msg { return new(dns.Msg).SetQuestion("node0.home.internal.", dns.TypeAAAA) }
	tests := map[string]struct {
		change func(*dns.Msg)
		rcode  int // -1 for no reply
	}{
		"a response":     {func(m *dns.Msg) { m.Response = true }, -1},
		"a notify":       {func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, dns.RcodeNotImplemented},
		"an update":      {func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		"no question":    {func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
		"two questions":  {func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		"another class":  {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		"a newer EDNS":   {func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
		"nothing odd":    {func(*dns.Msg) {}, dns.RcodeSuccess},
		"mixed case":     {func(m *dns.Msg) { m.Question[0].Name = "NoDe0.hOmE.iNtErNaL." }, dns.RcodeSuccess},
		"another domain": {func(m *dns.Msg) { m.Question[0].Name = "www.Example.com." }, dns.RcodeRefused},
	}
	for name, tt := range tests {
		q := base()
		tt.change(q)
		if b := n.reply(mustPack(q), false); tt.rcode < 0 {
			if b != nil {
				t.Errorf("%s: a reply", name)
			}
			continue
		}
		r := exchange(t, n, q, false)
		if r.Rcode != tt.rcode || r.Id != q.Id || !r.Response || r.Opcode != q.Opcode {
			t.Errorf("%s: %+v, want code %d", name, r.MsgHdr, tt.rcode)
		}
		if len(r.Question) > 0 && r.Question[0] != q.Question[0] {
			t.Errorf("%s: the question came back as %v", name, r.Question[0])
		}
	}
	whole := mustPack(base())
	for i := range whole {
		b := n.reply(whole[:i], false)
		if (b == nil) != (i < headerLen) {
			t.Errorf("%d of %d bytes: reply %x", i, len(whole), b)
		}
		if b != nil && b[3]&0xf == dns.RcodeSuccess {
			t.Errorf("%d of %d bytes: code %d", i, len(whole), b[3]&0xf)
		}
	}
}

// FuzzReply feeds the server with anything at all.
func FuzzReply(f *testing.F) {
	n := index(f, testZone(50))
	for _, name := range []string{"node0.home.internal.", "_openai._tcp.home.internal.", "home.internal.", "x."} {
		for _, qtype := range []uint16{dns.TypeAAAA, dns.TypePTR, dns.TypeANY, dns.TypeSOA} {
			q := new(dns.Msg).SetQuestion(name, qtype)
			f.Add(mustPack(q), false)
			f.Add(mustPack(q.SetEdns0(4096, true)), true)
		}
	}
	f.Fuzz(func(t *testing.T, message []byte, tcp bool) {
		b := n.reply(message, tcp)
		if b == nil {
			return
		}
		var r dns.Msg
		if err := r.Unpack(b); err != nil {
			t.Fatalf("a reply that does not parse: %v", err)
		}
		if !r.Response || r.Id != uint16(message[0])<<8|uint16(message[1]) {
			t.Errorf("not a reply to the query: %+v", r.MsgHdr)
		}
		if !tcp && len(b) > maxUDP {
			t.Errorf("%d bytes by UDP", len(b))
		}
	})
}

func BenchmarkReply(b *testing.B) {
	n := index(b, testZone(1000))
	for name, q := range map[string]*dns.Msg{
		"address": new(dns.Msg).SetQuestion("node500.home.internal.", dns.TypeAAAA),
		"missing": new(dns.Msg).SetQuestion("nobody.home.internal.", dns.TypeAAAA),
		"cut":     new(dns.Msg).SetQuestion("_openai._tcp.home.internal.", dns.TypePTR),
	} {
		message := mustPack(q)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				n.reply(message, false)
			}
		})
	}
}

func BenchmarkIndex(b *testing.B) {
	z := testZone(1000)
	for b.Loop() {
		z.Index()
	}
}
