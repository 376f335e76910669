package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/gateway"
)

func (a *app) gatewayCommand() *cobra.Command {
	var listen string
	var off bool
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Open an endpoint on this host for every model of the mesh",
		Long: "Open an endpoint on this host's loopback, for programs that speak the API of OpenAI. It answers with whichever\n" +
			"machine answers soonest, and only to who has its key. It stays open over restarts of the node until it is\n" +
			"closed with --off. What is printed can be read by a shell.",
		Example: "  eval \"$(balance gateway)\"\n  balance gateway --listen 127.0.0.1:4000\n  balance gateway --off",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if off {
				return a.client.call(cmd.Context(), http.MethodDelete, "/v1/gateway", nil, nil)
			}
			var g ownGateway
			if err := a.client.call(cmd.Context(), http.MethodPost, "/v1/gateway", map[string]string{"listen": listen}, &g); err != nil {
				return err
			}
			return a.print.answer(g, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "export OPENAI_BASE_URL=%s\nexport OPENAI_API_KEY=%s\n", g.URL, g.Key)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "", "address and port of loopback (default: any free port, which is then kept)")
	cmd.Flags().BoolVar(&off, "off", false, "close it")
	return cmd
}

func (a *app) modelsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "models",
		Short: "List the models of the mesh, where each of them is, and who would answer first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, served := []gateway.Where{}, []servedRow{}
			err := a.client.get(cmd.Context(), "/v1/models", &list)
			if err == nil && !a.print.json {
				err = a.client.get(cmd.Context(), "/v1/served", &served)
			}
			if err != nil {
				return err
			}
			return a.print.answer(list, func(w io.Writer) error {
				var rows [][]string
				for _, m := range list {
					context, vram := "", ""
					if m.Context > 0 {
						context = strconv.Itoa(m.Context)
					}
					if m.VRAM > 0 {
						vram = m.VRAM.String()
					}
					rows = append(rows, []string{m.Model, m.Node, m.Engine, context, vram, m.Why})
				}
				if err := table(w, []string{"MODEL", "NODE", "ENGINE", "CONTEXT", "VRAM", "WHY"}, rows); err != nil || len(served) == 0 {
					return err
				}
				fmt.Fprintln(w, "\nThis machine sees to:")
				return printServed(w, served)
			})
		},
	}
}

// ownGateway is the endpoint that the user of this machine has opened.
type ownGateway struct {
	Listen string `json:"listen"`
	URL    string `json:"base_url"`
	Key    string `json:"key"`
}

// settingGateway is where the ledger file keeps the address, and gatewayKey the
// file of the home with the key.
const (
	settingGateway = "gateway"
	gatewayKey     = "gateway.key"
)

// userGateway is open while the user wants it, over restarts of the node.
type userGateway struct {
	models *models
	home   home

	mu   sync.Mutex
	open *gateway.Endpoint // nil: it is closed
	now  ownGateway
}

var errNoGateway = fail("not_found", "open one with: balance gateway", "no gateway is open on this machine")

// start listens on an address and keeps it for the next time.
func (u *userGateway) start(ctx context.Context, l *localAPI, at string) (ownGateway, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open != nil {
		if at == "" || at == u.now.Listen {
			return u.now, nil
		}
		u.open.Close()
		u.open = nil
	}
	if at == "" {
		at = anyLoopback
	}
	key, err := u.key()
	if err != nil {
		return ownGateway{}, err
	}
	ln, err := net.Listen("tcp", at)
	if err != nil {
		return ownGateway{}, hint(err, "choose another address with --listen")
	}
	u.open = u.models.Open(l.who.me().Owner, "", key, gateway.Budget{})
	u.open.Serve(ln)
	u.now = ownGateway{Listen: ln.Addr().String(), URL: "http://" + ln.Addr().String() + "/v1", Key: key}
	return u.now, l.db.SetSetting(ctx, settingGateway, u.now.Listen)
}

// key returns the key of this machine's user, which is made once.
func (u *userGateway) key() (string, error) {
	path := u.home.path(gatewayKey)
	b, err := os.ReadFile(path)
	if key := strings.TrimSpace(string(b)); err == nil && key != "" {
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	key := gateway.NewKey()
	return key, os.WriteFile(path, []byte(key+"\n"), 0o600)
}

// close ends it with the node.
func (u *userGateway) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open != nil {
		u.open.Close()
		u.open = nil
	}
}

// stop closes it for good.
func (u *userGateway) stop(ctx context.Context, l *localAPI) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open == nil {
		return errNoGateway
	}
	u.open.Close()
	u.open = nil
	return l.db.SetSetting(ctx, settingGateway, "")
}

// resume opens what was open when the node went down. That it cannot is no
// reason for the node not to start.
func (u *userGateway) resume(ctx context.Context, l *localAPI) error {
	at, err := l.db.Setting(ctx, settingGateway)
	if err != nil || at == "" {
		return err
	}
	if _, err := u.start(ctx, l, at); err != nil {
		l.log.Error("the gateway for models is not opened", "address", at, "error", err)
	}
	return nil
}

func (l *localAPI) openGateway(w http.ResponseWriter, r *http.Request) error {
	var req struct {
		Listen string `json:"listen"`
	}
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if _, err := parseLoopback("--listen", req.Listen, "balance gateway --listen 127.0.0.1:4000"); err != nil {
		return err
	}
	g, err := l.gateway.start(r.Context(), l, req.Listen)
	if err != nil {
		return err
	}
	reply(w, g)
	return nil
}

func (l *localAPI) closeGateway(w http.ResponseWriter, r *http.Request) error {
	if err := l.gateway.stop(r.Context(), l); err != nil {
		return err
	}
	reply(w, struct{}{})
	return nil
}

func (l *localAPI) models(w http.ResponseWriter, _ *http.Request) error {
	reply(w, l.gateway.models.Where(l.who.me().Owner))
	return nil
}
