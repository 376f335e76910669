package egress

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
)

// Injection is a secret that the proxy adds to the requests for one host. The run
// speaks plain HTTP to the proxy, as http://HOST/, and the proxy TLS to the host:
// the secret is never in the run, nor on a wire without TLS.
type Injection struct {
	host   string // in canonical form
	port   uint16 // that is dialled
	usual  bool   // no port was named: the run asks for port 80
	header string
	prefix string // before the secret
	secret string
}

// NewInjection makes one for a host as [ParsePattern] takes it, but exactly one:
// example.org or example.org:8443.
func NewInjection(host, header, prefix, secret string) (Injection, error) {
	p, err := ParsePattern(host)
	if err != nil {
		return Injection{}, err
	}
	if p.host == "" || p.below {
		return Injection{}, fmt.Errorf("%.80q is more than one host: a secret goes to one", host)
	}
	i := Injection{host: p.host, port: p.port, header: http.CanonicalHeaderKey(header), prefix: prefix, secret: secret}
	if i.usual = p.port == 0; i.usual {
		i.port = 443
	}
	return i, nil
}

// Base is the URL by which the run reaches the host.
func (i Injection) Base() string {
	if i.usual {
		return "http://" + bracket(i.host)
	}
	return "http://" + i.address()
}

func (i Injection) address() string { return net.JoinHostPort(i.host, strconv.Itoa(int(i.port))) }

func bracket(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// serves reports whether a request that the run has made for a host, as its URL
// has it, is one that gets the secret. What the run says elsewhere, such as in
// Host, counts for nothing.
func (i Injection) serves(address string) bool {
	name, text, ok := cutPort(address)
	if !ok {
		name, text = strings.Trim(address, "[]"), "80"
	}
	host, err := canonical(name)
	if err != nil || host != i.host {
		return false
	}
	if i.usual {
		return text == "80"
	}
	return text == strconv.Itoa(int(i.port))
}

// injections returns those that a request gets.
func (p *Proxy) injections(address string) []Injection {
	var out []Injection
	for _, i := range p.Inject {
		if i.serves(address) {
			out = append(out, i)
		}
	}
	return out
}

// rewrite is a request on its way out.
func (p *Proxy) rewrite(r *httputil.ProxyRequest) {
	for _, i := range p.injections(r.In.URL.Host) {
		r.Out.URL.Scheme, r.Out.URL.Host = "https", bracket(i.host)
		if !i.usual {
			r.Out.URL.Host = i.address()
		}
		r.Out.Header[i.header] = []string{i.prefix + i.secret} // and not what the run says there
	}
	r.Out.Host = r.Out.URL.Host // the address decides, not what the run says beside it
}

// hide takes secrets out of the headers of an answer.
func (p *Proxy) hide(resp *http.Response) error {
	for _, i := range p.Inject {
		for _, h := range []http.Header{resp.Header, resp.Trailer} {
			for name, values := range h {
				for _, v := range values {
					if strings.Contains(v, i.secret) {
						delete(h, name)
					}
				}
			}
		}
	}
	return nil
}
