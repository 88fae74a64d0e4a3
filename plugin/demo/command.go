package demo

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/plugin/cli"
)

// Command makes `cleave demo`.
func Command(s cli.Streams) *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "demo",
		Short: "The whole story on one machine, with two real VMs",
		Long: `Run the whole story on this machine, in minutes: an array with mirrored volumes
that serves iSCSI; a VM with PostgreSQL under an insert load and one without a
guest agent, both on LUNs of the array; one snapshot set over both; and the proof
that the recovered LUN holds every commit from before the guest's snapshot and
none from after it.

It needs what "make deps" installs, about 3 GiB of memory and 3 GiB of disk. VMs
run under KVM where that works and under software emulation where not. It listens
on 127.0.0.1 only, and leaves nothing behind.`,
		Example: `  cleave demo
  cleave demo --dir /var/tmp/cleave-demo --keep`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.out = s.Out
			var err error
			if o.exe, err = os.Executable(); err != nil {
				return fmt.Errorf("finding this program: %w", err)
			}
			return run(c.Context(), o)
		},
	}
	c.Flags().StringVar(&o.dir, "dir", "", "directory to work in, new or empty; short, for it holds sockets (default: a temporary one)")
	c.Flags().BoolVar(&o.keep, "keep", false, "keep the directory: volumes, logs, the set document")
	return c
}
