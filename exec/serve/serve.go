// Package serve says what it takes to serve a model, and which replicas of it are
// to be started and ended. It does no I/O.
//
// An engine that is installed on a machine answers for the model, as a run that
// goes on until it is ended ([task.Serve]). No engine is named here that people
// do not run themselves: llama-server for files of weights, Ollama and vLLM for
// what they know by its name.
package serve

import (
	"cmp"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/gguf"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// Engines that can be started.
const (
	Llama  = "llama-server"
	Ollama = "ollama"
	VLLM   = "vllm"
)

// DefaultContext is how many tokens a model takes where nobody says how many, if
// it was trained for as many.
const DefaultContext = 8192

// Model is what is to be served.
type Model struct {
	Name    string // as others ask for it
	Engine  string
	Source  string     // what Ollama or vLLM call it
	Context int        // tokens
	VRAM    task.Bytes // that it takes, where nothing tells it; 0: not known
	Idle    time.Duration

	Weights wire.Hash // of a file for llama-server
	Size    task.Bytes
	Header  gguf.Header
}

// EngineFor is the engine for what a person calls a model: a file of weights, the
// name of a repository, or a name that Ollama knows.
func EngineFor(model string) string {
	switch {
	case IsFile(model):
		return Llama
	case strings.Contains(model, "/"):
		return VLLM
	}
	return Ollama
}

// IsFile reports whether what a person calls a model is a file of weights.
func IsFile(model string) bool { return strings.EqualFold(path.Ext(model), ".gguf") }

// NameOf is what others call a model, if its person says nothing else.
func NameOf(model string) string {
	if !IsFile(model) {
		return model
	}
	base := path.Base(model)
	return strings.ToLower(strings.ReplaceAll(base[:len(base)-len(".gguf")], " ", "-"))
}

// Specs are the runs that serve the model, those to be preferred first: on a GPU,
// and, with llama-server, without one.
func (m Model) Specs() ([]task.Spec, error) {
	base := task.Spec{
		Agent: task.ServePrefix + m.Name, Driver: task.DriverProcess, Detached: true, Retry: task.RetryNever,
		Needs: task.Needs{Engines: []string{m.Engine}},
		Serve: &task.Serve{Kind: task.ServeModel, Name: m.Name, Health: "/health", Weights: m.Weights, Size: m.Size, Idle: m.Idle},
	}
	context := strconv.Itoa(m.Context)
	var out []task.Spec
	switch m.Engine {
	case Llama:
		on := []string{"llama-server", "--host", "127.0.0.1", "--port", task.PortWord, "--model", task.WeightsWord, "--alias", m.Name, "--ctx-size", context, "--jinja", "--n-gpu-layers"}
		takes := m.takes()
		gpu, cpu := base, base
		gpu.Command, gpu.Needs.GPUs, gpu.Needs.VRAM = append(slices.Clip(on), "999"), 1, takes
		cpu.Command, cpu.Needs.Memory = append(slices.Clip(on), "0"), takes
		out = []task.Spec{gpu, cpu}
	case VLLM:
		base.Command = []string{"vllm", "serve", m.Source, "--host", "127.0.0.1", "--port", task.PortWord, "--served-model-name", m.Name, "--max-model-len", context}
		base.Needs.GPUs, base.Needs.VRAM = 1, m.VRAM
		out = []task.Spec{base}
	case Ollama:
		base.Command, base.Serve.Health = []string{"sh", "-c", ollamaScript, "sh", m.Source}, "/api/version"
		base.Env = map[string]string{"OLLAMA_CONTEXT_LENGTH": context}
		base.Needs.VRAM = m.VRAM
		out = []task.Spec{base}
	default:
		return nil, fmt.Errorf("engine %.40q is not known: %s, %s and %s are", m.Engine, Llama, Ollama, VLLM)
	}
	for i := range out {
		if err := out[i].Check(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// takes is how much memory the model takes: as its person says, or as the header
// of its weights tells.
func (m Model) takes() task.Bytes {
	if m.VRAM > 0 {
		return m.VRAM
	}
	return min(task.Bytes(m.Header.Memory(uint64(m.Size), uint64(m.Context))), math.MaxInt64)
}

// ContextFor is how many tokens a model with a header takes, if a person wants so
// many; 0 for the usual.
func ContextFor(h gguf.Header, want int) int {
	if trained := h.Context; want == 0 && trained > 0 && trained < DefaultContext {
		return int(trained)
	}
	return cmp.Or(want, DefaultContext)
}

// ollamaScript starts a server of its own beside the one that the machine may
// have, and has it load the model, which it gets where it is not there.
const ollamaScript = `export OLLAMA_HOST=127.0.0.1:$BALANCE_PORT
ollama serve & engine=$!
trap 'kill $engine' TERM INT
until ollama list >/dev/null 2>&1; do kill -0 $engine || exit 1; sleep 0.2; done
ollama show "$1" >/dev/null 2>&1 || ollama pull "$1" || { kill $engine; exit 1; }
wait $engine`
