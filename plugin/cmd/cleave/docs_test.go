package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cleave-san/cleave/plugin/assemble"
	"github.com/cleave-san/cleave/plugin/cli"
	"github.com/cleave-san/cleave/plugin/demo"
)

//go:generate go test -run ^TestDocs$ . -update

var update = flag.Bool("update", false, "write docs/cli.md anew")

const docs = "../../../docs/cli.md"

// TestDocs holds docs/cli.md to what --help says: it is written from the same
// words, by go generate.
func TestDocs(t *testing.T) {
	want := document(tree())
	if *update {
		if err := os.WriteFile(docs, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the commands say; `go generate ./plugin/cmd/cleave` writes it anew: %s", docs, difference(string(got), want))
	}
}

// difference is the first line that is not the same.
func difference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range w {
		if i >= len(g) || g[i] != w[i] {
			return fmt.Sprintf("line %d should be %q", i+1, w[i])
		}
	}
	return fmt.Sprintf("it has %d lines too many", len(g)-len(w))
}

// tree is the whole command line as root has it, whoever runs this.
func tree() *cobra.Command {
	p := assemble.Parts("", func(string) string { return "" })
	p.ControlSocket, p.ArraySocket = "/run/cleave/cleave.sock", "/run/cleave/array.sock"
	p.Extra = []func(cli.Streams) *cobra.Command{demo.Command}
	return cli.New(cli.Streams{}, p)
}

func document(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# The command line\n\n<!-- Written by go generate ./plugin/cmd/cleave from the commands' own help. -->\n\n" +
		"The same words as `cleave help COMMAND`.\n\n")
	each(root, func(c *cobra.Command) {
		depth := strings.Count(c.CommandPath(), " ")
		fmt.Fprintf(&b, "%s- [%s](#%s): %s\n", strings.Repeat("  ", depth), c.CommandPath(), strings.ReplaceAll(c.CommandPath(), " ", "-"), c.Short)
	})
	b.WriteString("\n")
	each(root, func(c *cobra.Command) { section(&b, c) })
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// each calls fn for c and all below it that people are meant to see.
func each(c *cobra.Command, fn func(*cobra.Command)) {
	fn(c)
	for _, child := range c.Commands() {
		if child.IsAvailableCommand() {
			each(child, fn)
		}
	}
}

func section(b *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(b, "## %s\n\n", c.CommandPath())
	prose(b, c.Long)
	if c.Runnable() && !c.HasSubCommands() {
		block(b, c.UseLine())
	}
	if c.Example != "" {
		b.WriteString("Examples:\n\n")
		block(b, unindent(c.Example))
	}
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			own.AddFlag(f)
		}
	})
	if !own.HasAvailableFlags() {
		return
	}
	title := "Flags"
	if !c.HasParent() {
		title = "Flags of every command"
	}
	b.WriteString(title + ":\n\n")
	block(b, unindent(own.FlagUsages()))
}

// prose writes help text; lines that are indented in it keep their form.
func prose(b *strings.Builder, text string) {
	for para := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if strings.HasPrefix(para, "  ") {
			block(b, unindent(para))
		} else {
			b.WriteString(para + "\n\n")
		}
	}
}

func block(b *strings.Builder, text string) {
	fmt.Fprintf(b, "```\n%s\n```\n\n", strings.TrimRight(text, "\n"))
}

// unindent takes away what all lines have in common in front.
func unindent(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	least := len(text)
	for _, l := range lines {
		if t := strings.TrimLeft(l, " "); t != "" {
			least = min(least, len(l)-len(t))
		}
	}
	for i, l := range lines {
		lines[i] = strings.TrimRight(l[min(least, len(l)):], " ")
	}
	return strings.Join(lines, "\n")
}
