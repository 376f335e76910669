// Package exec holds no code: the packages below it are what runs, where, and
// for whom.
//
// A run begins as a task.Spec that somebody wants to be run. Package dispatch, on the
// submitter's machine, chooses where: package place ranks the machines that
// package fleet knows, by what package policy says that their owners allow.
// Package remote carries the order to that machine and its events back, and
// package run, there, asks the same questions again and starts it. Package blob
// moves its files and package journal keeps its events.
//
// None of them knows how machines reach each other.
package exec
