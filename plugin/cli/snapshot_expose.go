package cli

import (
	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/orchestrator"
)

func (a *app) snapshotExposeCommand() *cobra.Command {
	var to []string
	var writable, dirty, fresh bool
	c := &cobra.Command{
		Use:   "expose SET --to HOST|IQN…",
		Short: "Let initiators see the LUNs of a ready set",
		Long: `Let initiators see the LUNs of a ready set, and nobody else. LUNs are read-only
until --writable raises them, on the same LUN numbers; what is then written goes
to an overlay and never to the split; but for a set that was recovered in place,
whose LUNs are the splits themselves.

An initiator that has the original of a disk before it is refused: LVM, multipath
and clusters take two disks of one identity for each other. With --new-identity
it gets the same disks with other ids in partition tables, and other PV and VG
UUIDs and VG names, as LUNs of their own (…/new). Who has originals before them is
asked of the array and of the VM's hypervisor; where neither knows, the set's
events say so. UUIDs of file systems stay what they are.`,
		Example: `  cleave snapshot expose set-0123456789abcdef --to iqn.1993-08.org.debian:01:backup1
  cleave snapshot expose set-0123456789abcdef --to iqn.1993-08.org.debian:01:backup1 --writable
  cleave snapshot expose set-0123456789abcdef --to node2 --new-identity`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := setID(args[0])
			if err != nil {
				return err
			}
			iqns, err := hostsOrInitiators(to)
			if err != nil {
				return err
			}
			return a.withControl(func(s Control) error {
				set, err := s.Expose(c.Context(), id, orchestrator.ExposeRequest{Initiators: iqns, Writable: writable, Dirty: dirty, NewIdentity: fresh})
				if err != nil {
					return err
				}
				return a.print(setResult(set))
			})
		},
	}
	f := c.Flags()
	f.StringArrayVar(&to, "to", nil, "IQN of an initiator, or name of a host in the configuration; repeat it for several (required)")
	f.BoolVar(&writable, "writable", false, "let them write")
	f.BoolVar(&dirty, "dirty", false, "the splits as they came off as well; these stay read-only")
	f.BoolVar(&fresh, "new-identity", false, "with other GPT or MBR ids, PV and VG UUIDs and VG names than the originals")
	c.MarkFlagsMutuallyExclusive("dirty", "new-identity")
	if err := c.MarkFlagRequired("to"); err != nil {
		panic(err) // a flag that is not there: a slip in this function
	}
	return c
}

func (a *app) snapshotUnexposeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unexpose SET",
		Short: "Take the LUNs of a set away; its copies stay",
		Long: `Take all LUNs of a set away from the initiators that see them. The copies stay
until the set is deleted or its lease ends.`,
		Example: `  cleave snapshot unexpose set-0123456789abcdef`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := setID(args[0])
			if err != nil {
				return err
			}
			return a.withControl(func(s Control) error {
				set, err := s.Unexpose(c.Context(), id)
				if err != nil {
					return err
				}
				return a.print(setResult(set))
			})
		},
	}
}
