// Package examples holds agents that do something useful with nothing but a
// shell: no model, no network. Each folder is an agent with its manifest, its
// script and data to try it on.
package examples

import "embed"

// FS has the folder of each agent.
//
//go:embed text-report log-triage
var FS embed.FS
