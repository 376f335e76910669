//go:build !linux || !(amd64 || arm64)

package isolate

var calls denied // none: there is no sandbox
