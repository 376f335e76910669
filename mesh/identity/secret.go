package identity

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// What a private key says when something tries to print or marshal it.
const secretText = "(secret)"

var errSecret = errors.New("a private key is not written as text")

func (Key) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, secretText) }
func (Key) LogValue() slog.Value         { return slog.StringValue(secretText) }
func (Key) MarshalJSON() ([]byte, error) { return nil, errSecret }
func (Key) MarshalText() ([]byte, error) { return nil, errSecret }

func (WGKey) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, secretText) }
func (WGKey) LogValue() slog.Value         { return slog.StringValue(secretText) }
func (WGKey) MarshalJSON() ([]byte, error) { return nil, errSecret }
func (WGKey) MarshalText() ([]byte, error) { return nil, errSecret }
