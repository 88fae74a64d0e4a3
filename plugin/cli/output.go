package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// format is how a result is printed.
type format string

const (
	formatTable format = "table" // for people
	formatWide  format = "wide"  // for people with wide terminals
	formatJSON  format = "json"  // versioned, for programs
	formatYAML  format = "yaml"  // the same in YAML
	formatName  format = "name"  // only names, one a line
)

// Set, String and Type make it a flag.
func (f *format) Set(s string) error {
	switch v := format(s); v {
	case formatTable, formatWide, formatJSON, formatYAML, formatName:
		*f = v
		return nil
	}
	return fmt.Errorf("want table, wide, json, yaml or name")
}

func (f *format) String() string { return string(*f) }
func (*format) Type() string     { return "FORMAT" }

// result is what a command has to say, in all forms.
type result struct {
	value any                               // as JSON; it carries its version
	names []string                          // -o name
	text  func(w io.Writer, p *paper) error // -o table and wide
}

// list is the JSON of several things: {"version": 1, "<kind>": [...]}.
func list[T any](kind string, items []T) any {
	return ordered{{"version", 1}, {kind, some(items)}}
}

// some is an empty list in JSON where there is none.
func some[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

// ordered is a JSON object that keeps its order.
type ordered []field

type field struct {
	key   string
	value any
}

func (o ordered) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:", f.key)
		v, err := json.Marshal(f.value)
		if err != nil {
			return nil, err
		}
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// print writes a result to stdout in the form that was asked for.
func (a *app) print(r result) error {
	var err error
	switch a.output {
	case formatJSON:
		err = printJSON(a.Out, r.value)
	case formatYAML:
		err = printYAML(a.Out, r.value)
	case formatName:
		for _, n := range r.names {
			if _, err = fmt.Fprintln(a.Out, printable(n)); err != nil {
				break
			}
		}
	default:
		// Built first and written once: half a table helps nobody.
		var b bytes.Buffer
		if err = r.text(&b, &paper{wide: a.output == formatWide, color: a.color()}); err == nil {
			_, err = a.Out.Write(b.Bytes())
		}
	}
	if err != nil {
		return fmt.Errorf("printing the result: %w", err)
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printYAML prints the same names in the same order as printJSON, by way of it.
func printYAML(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil { // JSON is YAML
		return err
	}
	var plain func(n *yaml.Node)
	plain = func(n *yaml.Node) {
		n.Style = 0
		for _, c := range n.Content {
			plain(c)
		}
	}
	plain(&doc)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return err
	}
	return enc.Close()
}

// paper is what tables are drawn on.
type paper struct{ wide, color bool }

// table is rows under a head. Columns whose head begins with "+" are for wide
// only.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// draw writes the table with columns two spaces apart; empty cells are dashes.
func (p *paper) draw(w io.Writer, t table) {
	var keep []int
	for i, h := range t.head {
		if p.wide || !strings.HasPrefix(h, "+") {
			keep = append(keep, i)
		}
	}
	lines := make([][]string, 0, len(t.rows)+1)
	for _, row := range append([][]string{t.head}, t.rows...) {
		line := make([]string, 0, len(keep))
		for _, i := range keep {
			cell := "-"
			if i < len(row) && row[i] != "" {
				cell = printable(row[i])
			}
			line = append(line, cell)
		}
		lines = append(lines, line)
	}
	for j := range lines[0] {
		lines[0][j] = strings.TrimPrefix(lines[0][j], "+")
	}
	width := make([]int, len(keep))
	for _, line := range lines {
		for j, cell := range line {
			width[j] = max(width[j], len([]rune(cell)))
		}
	}
	for i, line := range lines {
		var b strings.Builder
		for j, cell := range line {
			pad := width[j] - len([]rune(cell))
			if i > 0 {
				cell = p.paint(cell)
			}
			b.WriteString(cell)
			if j < len(line)-1 {
				b.WriteString(strings.Repeat(" ", pad+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// paints gives words that matter a colour: green is as good as it gets, yellow
// is less than that, red needs someone.
var paints = map[string]string{
	"application": "32", "filesystem": "32", "no downtime": "32", "Synchronized": "32", "ready": "32", "ok": "32",
	"crash": "33", "saved": "33", "some downtime": "33", "Unsynchronized": "33",
	"none": "31", "not possible": "31", "Broken": "31", "Invalid": "31", "aborted": "31", "failed": "31",
}

func (p *paper) paint(cell string) string {
	if c := paints[cell]; p.color && c != "" {
		return "\x1b[" + c + "m" + cell + "\x1b[0m"
	}
	return cell
}
