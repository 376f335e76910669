package gateway

import (
	"context"
	"net/http"
	"time"
)

// wakeTime is how long a request waits for its model to be loaded.
const wakeTime = 10 * time.Minute

// sleeps reports whether a model of this machine is to be loaded somewhere before
// it can be asked.
func (g *Gateway) sleeps(model string) bool {
	e, _, ok := g.local(model)
	return ok && e.URL == ""
}

// wake has a model loaded. Nothing has been written if there is a fault.
func (g *Gateway) wake(ctx context.Context, model string) *fault {
	ctx, cancel := context.WithTimeout(ctx, wakeTime)
	defer cancel()
	if err := g.cfg.Wake(ctx, model); err != nil {
		return notLoaded(model, err.Error())
	}
	return nil
}

func notLoaded(model, why string) *fault {
	return faultf(http.StatusServiceUnavailable, "server_error", "model_not_loaded", "The model `%s` is not loaded: %s.", model, why)
}
