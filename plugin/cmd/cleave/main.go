// Command cleave takes application-consistent backups of virtual machines from
// the storage array. `cleave --help` lists what it does.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/plugin/assemble"
	"github.com/cleave-san/cleave/plugin/cli"
	"github.com/cleave-san/cleave/plugin/demo"
)

func main() {
	args := os.Args[1:]
	if code, hidden := assemble.Hidden(args, os.Stdin, os.Stdout, os.Stderr); hidden {
		os.Exit(code)
	}
	p := assemble.Parts(release(), os.Getenv)
	p.Extra = []func(cli.Streams) *cobra.Command{demo.Command}
	os.Exit(cli.Main(args, cli.Standard(), p))
}
