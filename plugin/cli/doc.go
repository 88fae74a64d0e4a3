// Package cli is the command line: `cleave NOUN VERB`.
//
// It promises scripts that build on it:
//
//   - Results are on stdout, logs and progress on stderr; -o json is versioned,
//     and fields are added to it, never renamed.
//   - Bytes are bytes and times are RFC 3339 in UTC in JSON and YAML; people get
//     GiB and short times in tables, whose columns may change.
//   - Exit statuses are those of the table in exit.go.
//   - An error is one line that names the thing, and ends with what to try next.
//
// The package is a door: it speaks to an orchestrator.Service (the control
// plane) and to a Storage (the data plane), both handed in by Parts, and knows
// no provider and no host writer. Nothing here is global; New builds a fresh
// tree of commands each time.
//
// To add a command, write one file with one function that returns it, help
// text and examples first, and name it in root.go.
package cli
