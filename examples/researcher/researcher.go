// Researcher answers a question about the files of a folder: it gives a model
// tools to look at them, and does what the model asks for until it has an answer.
// It knows the model by OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
)

// Limits of one question.
const (
	maxSteps  = 30
	maxResult = 16 << 10 // bytes of what a tool gives
	maxAnswer = 8 << 20
)

const task = "You answer a question about a folder of text files. Look at the files with your tools first. " +
	"Say only what they say, and name the file for each statement. When you know enough, answer without calling a tool."

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
	Calls   []call `json:"tool_calls,omitempty"`
	Answers string `json:"tool_call_id,omitempty"`
}

type call struct {
	ID       string `json:"id"`
	Type     string `json:"type"`
	Function struct {
		Name      string `json:"name"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

func main() {
	question := strings.Join(os.Args[1:], " ")
	if question == "" {
		fail(errors.New(`ask something: balance run examples/researcher "What is in here?"`))
	}
	folder, err := os.OpenRoot("folder")
	if err != nil {
		fail(err)
	}
	answer, err := research(folder.FS(), question)
	if err == nil {
		err = os.WriteFile("answer.md", []byte("# "+question+"\n\n"+answer+"\n"), 0o644)
	}
	if err != nil {
		fail(err)
	}
	fmt.Println(answer)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "researcher:", err)
	os.Exit(1)
}

// research has the model call tools until it answers.
func research(folder fs.FS, question string) (string, error) {
	talk := []message{{Role: "system", Content: task}, {Role: "user", Content: question}}
	for range maxSteps {
		said, err := ask(talk)
		if err != nil {
			return "", err
		}
		if len(said.Calls) == 0 {
			return strings.TrimSpace(said.Content), nil
		}
		talk = append(talk, said)
		for _, c := range said.Calls {
			fmt.Fprintf(os.Stderr, "%s %s\n", c.Function.Name, c.Function.Arguments)
			talk = append(talk, message{Role: "tool", Content: do(folder, c), Answers: c.ID})
		}
	}
	return "", fmt.Errorf("no answer after %d steps", maxSteps)
}

// tools are what the model may call, as the API of OpenAI has them.
var tools = json.RawMessage(`[
 {"type":"function","function":{"name":"list","description":"List all files with their sizes","parameters":{"type":"object","properties":{}}}},
 {"type":"function","function":{"name":"search","description":"Find the lines with a text, in upper or lower case","parameters":{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}}},
 {"type":"function","function":{"name":"read","description":"Read a file","parameters":{"type":"object","properties":{"file":{"type":"string"}},"required":["file"]}}}]`)

// ask sends the conversation to the model, and returns what it says.
func ask(talk []message) (message, error) {
	body, err := json.Marshal(map[string]any{"model": os.Getenv("OPENAI_MODEL"), "messages": talk, "tools": tools})
	if err != nil {
		return message{}, err
	}
	req, err := http.NewRequest(http.MethodPost, os.Getenv("OPENAI_BASE_URL")+"/chat/completions", bytes.NewReader(body))
	if err != nil {
		return message{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+os.Getenv("OPENAI_API_KEY"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return message{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return message{}, err
	}
	var got struct {
		Choices []struct {
			Message message `json:"message"`
		} `json:"choices"`
	}
	if resp.StatusCode != http.StatusOK || json.Unmarshal(text, &got) != nil || len(got.Choices) == 0 {
		return message{}, fmt.Errorf("the model answers %s: %.500s", resp.Status, text)
	}
	return got.Choices[0].Message, nil
}

// do carries out a call. What goes wrong is told to the model, which may try
// something else.
func do(folder fs.FS, c call) string {
	var args struct{ Text, File string }
	result := ""
	err := json.Unmarshal([]byte(c.Function.Arguments), &args)
	if err == nil || c.Function.Arguments == "" {
		switch c.Function.Name {
		case "list":
			result, err = search(folder, "")
		case "search":
			if result, err = search(folder, args.Text); result == "" && err == nil {
				result = "no line has that"
			}
		case "read":
			var b []byte
			b, err = fs.ReadFile(folder, args.File)
			result = string(b)
		default:
			err = fmt.Errorf("there is no tool %q", c.Function.Name)
		}
	}
	if err != nil {
		return "error: " + err.Error()
	}
	if len(result) > maxResult {
		result = result[:maxResult] + "\n(cut off here)"
	}
	return result
}

// search returns the lines with a text; for no text, the names of all files.
func search(folder fs.FS, text string) (string, error) {
	var out strings.Builder
	err := fs.WalkDir(folder, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || out.Len() > maxResult {
			return err
		}
		b, err := fs.ReadFile(folder, path)
		if err != nil {
			return err
		}
		if text == "" {
			fmt.Fprintf(&out, "%s: %d bytes\n", path, len(b))
			return nil
		}
		for n, line := range strings.Split(string(b), "\n") {
			if strings.Contains(strings.ToLower(line), strings.ToLower(text)) {
				fmt.Fprintf(&out, "%s:%d: %s\n", path, n+1, line)
			}
		}
		return nil
	})
	return out.String(), err
}
