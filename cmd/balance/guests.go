package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/mdp/qrterminal/v3"
	"github.com/spf13/cobra"
)

func (a *app) guestsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "guests",
		Short: "List the plain WireGuard devices that machines of the mesh carry",
		Long: "List the plain WireGuard devices that machines of the mesh carry. They are let in with\n" +
			"balance invite --wireguard NAME, and taken back on the same machine with balance guests rm NAME.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var rows []guestRow
			if err := a.client.get(cmd.Context(), "/v1/guests", &rows); err != nil {
				return err
			}
			return a.print.answer(rows, func(w io.Writer) error {
				var out [][]string
				for _, g := range rows {
					until := ""
					if !g.Expires.IsZero() {
						until = g.Expires.Local().Format("2006-01-02 15:04")
					}
					out = append(out, []string{g.Name, g.Node, g.Owner, g.Address, until})
				}
				return table(w, []string{"GUEST", "OF", "OWNER", "ADDRESS", "UNTIL"}, out)
			})
		},
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "rm NAME",
		Short: "Take a guest of this machine back",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.client.call(cmd.Context(), http.MethodDelete, "/v1/guests/"+url.PathEscape(args[0]), nil, nil)
		},
	})
	return cmd
}

// inviteGuest makes a plain WireGuard device a guest of this machine, and prints
// its configuration. With qr it is a QR code alone; a terminal shows both.
func (a *app) inviteGuest(ctx context.Context, req guestRequest, qr bool) error {
	var g guestReply
	if err := a.client.call(ctx, http.MethodPost, "/v1/guests", req, &g); err != nil {
		return err
	}
	return a.print.answer(g, func(w io.Writer) error {
		if qr || a.print.outTTY {
			writeQR(w, g.Config)
		}
		if !qr {
			fmt.Fprint(w, g.Config)
		}
		a.explainGuest(g, len(req.DNS) > 0)
		return nil
	})
}

// explainGuest tells what a person has to know of a new guest.
func (a *app) explainGuest(g guestReply, dns bool) {
	until := "until it is taken back with: balance guests rm " + g.Name
	if !g.Expires.IsZero() {
		until = "until " + g.Expires.Local().Format("15:04 on 2 January")
	}
	a.print.say("%s is a guest of %s at %s, %s", g.Name, g.Node, g.Address, until)
	a.print.say("the configuration holds its private key, and is shown this once: scan it, or keep it where nobody else reads it")
	switch g.Reach {
	case "lan":
		a.print.say("warning: it finds this machine at %s, which is an address of this network alone; where a router passes a UDP port on to this one, say where: --endpoint HOST:PORT", g.Endpoint)
	case "internet":
		a.print.say("it finds this machine at %s, UDP: a firewall in between has to let that in", g.Endpoint)
	}
	if !dns {
		a.print.say("it reaches machines by address; for names give it DNS servers for all names but the mesh's, like --dns 9.9.9.9")
	}
}

func writeQR(w io.Writer, text string) {
	qrterminal.GenerateWithConfig(text, qrterminal.Config{
		Level: qrterminal.L, Writer: w, HalfBlocks: true, QuietZone: 1,
		BlackChar: qrterminal.BLACK_BLACK, WhiteChar: qrterminal.WHITE_WHITE, WhiteBlackChar: qrterminal.WHITE_BLACK, BlackWhiteChar: qrterminal.BLACK_WHITE,
	})
}

// guestRequest is the body of POST /v1/guests.
type guestRequest struct {
	Name     string        `json:"name"`
	TTL      time.Duration `json:"ttl_ns,omitempty"`   // 0: until it is taken back
	Endpoint string        `json:"endpoint,omitempty"` // empty: what this machine knows of itself
	DNS      []string      `json:"dns,omitempty"`      // servers for names that are not the mesh's; empty: no DNS
}

// guestRow is one element of the answer of GET /v1/guests.
type guestRow struct {
	Name    string    `json:"name"`
	Node    string    `json:"node"` // which carries it
	Owner   string    `json:"owner"`
	Address string    `json:"address"`
	Expires time.Time `json:"expires,omitzero"`
	Self    bool      `json:"self"` // carried by this machine
}

// guestReply is the answer of POST /v1/guests.
type guestReply struct {
	guestRow

	Endpoint string `json:"endpoint"`
	Reach    string `json:"reach"`  // of the endpoint: lan, internet, or given
	Config   string `json:"config"` // for wg-quick, with the private key
}
