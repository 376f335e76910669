package portmap

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/huin/goupnp"
	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/httpu"
	"github.com/huin/goupnp/soap"
	"github.com/huin/goupnp/ssdp"
)

const (
	upnpTime    = 4 * time.Second // for all of it
	upnpSearch  = 1500 * time.Millisecond
	description = "Balance" // what the router shows to its owner

	// onlyPermanent is the error of a router that knows no leases.
	onlyPermanent = 725
)

// gateway is the service of a router, of any of its versions.
type gateway interface {
	GetExternalIPAddressCtx(ctx context.Context) (string, error)
	AddPortMappingCtx(ctx context.Context, remote string, external uint16, protocol string, internal uint16, client string, enabled bool, description string, seconds uint32) error
	DeletePortMappingCtx(ctx context.Context, remote string, external uint16, protocol string) error
	GetServiceClient() *goupnp.ServiceClient
}

// askUPnP looks for the router's description and asks by what it says.
func askUPnP(ctx context.Context, r Router, port uint16) (*lease, error) {
	ctx, cancel := context.WithTimeout(ctx, upnpTime)
	defer cancel()
	at, err := findGateway(ctx, r)
	if err != nil {
		return nil, err
	}
	return askGateway(ctx, at, r, port)
}

// findGateway returns where the router describes itself. Others on the network
// may answer too; they are not heeded.
func findGateway(ctx context.Context, r Router) (*url.URL, error) {
	c, err := httpu.NewHTTPUClientAddr(r.Local.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(ctx, upnpSearch)
	defer cancel()
	for _, device := range []string{internetgateway2.URN_WANConnectionDevice_1, internetgateway2.URN_WANConnectionDevice_2} {
		answers, err := ssdp.RawSearch(ctx, c, device, 2) //nolint:bodyclose // each is a datagram
		if err != nil {
			return nil, err
		}
		for _, a := range answers {
			if at, err := a.Location(); err == nil && at.Hostname() == r.Addr.String() {
				return at, nil
			}
		}
	}
	return nil, errNone
}

// askGateway asks the router whose description is at an address.
func askGateway(ctx context.Context, at *url.URL, r Router, port uint16) (*lease, error) {
	g, err := openGateway(ctx, at, r)
	if err != nil {
		return nil, err
	}
	ip, err := g.GetExternalIPAddressCtx(ctx)
	if err != nil {
		return nil, err
	}
	external, err := netip.ParseAddr(ip)
	if err != nil {
		return nil, fmt.Errorf("external address of the router: %w", err)
	}
	life := lifetime
	add := func() error {
		return g.AddPortMappingCtx(ctx, "", port, "UDP", port, r.Local.String(), true, description, uint32(life/time.Second))
	}
	err = add()
	if fault := (*soap.SOAPFaultError)(nil); errors.As(err, &fault) && fault.Detail.UPnPError.Errorcode == onlyPermanent {
		life = 0
		err = add()
	}
	if err != nil {
		return nil, err
	}
	return &lease{
		Mapping: Mapping{UPnP, netip.AddrPortFrom(external, port)}, life: lifetime,
		release: func(ctx context.Context) {
			_ = g.DeletePortMappingCtx(ctx, "", port, "UDP") // a lease ends by itself
		},
	}, nil
}

// openGateway reads a router's description and chooses a service. One that
// leads to another host is not used.
func openGateway(ctx context.Context, at *url.URL, r Router) (gateway, error) {
	root, err := goupnp.DeviceByURLCtx(ctx, at)
	if err != nil {
		return nil, err
	}
	var found []gateway
	add := func(g gateway) { found = append(found, g) }
	// An error is that the device lacks the service.
	if list, err := internetgateway2.NewWANIPConnection2ClientsFromRootDevice(root, at); err == nil {
		for _, g := range list {
			add(g)
		}
	}
	if list, err := internetgateway2.NewWANIPConnection1ClientsFromRootDevice(root, at); err == nil {
		for _, g := range list {
			add(g)
		}
	}
	if list, err := internetgateway2.NewWANPPPConnection1ClientsFromRootDevice(root, at); err == nil {
		for _, g := range list {
			add(g)
		}
	}
	for _, g := range found {
		c := g.GetServiceClient().SOAPClient
		if c.EndpointURL.Hostname() == r.Addr.String() {
			c.HTTPClient = http.Client{Transport: direct}
			return g, nil
		}
	}
	return nil, errNone
}

// direct asks the router itself, once.
var direct = &http.Transport{DisableKeepAlives: true}

func init() {
	// The library has one client for all descriptions.
	goupnp.HTTPClientDefault = &http.Client{Transport: direct, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}
