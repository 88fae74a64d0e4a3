package cli

import "github.com/spf13/cobra"

func (a *app) mirrorCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "mirror",
		Short: "Add, repair, split off and watch the mirrors of volumes",
		Long: `The mirrors of volumes: copies that the array keeps equal. A split takes one
off, as a snapshot with a content of its own. It goes back under its volume
(resync), the volume goes back to it (revert), the two change places (reverse),
or it becomes a volume for good (break).

These commands ask the array alone, by hand: no guest is told, so that a split is
as after a power cut. cleave snapshot create makes sets that hold more, and
cleave snapshot delete gives their splits back.`,
		Example: `  cleave mirror status db
  cleave mirror add db --pool c
  cleave mirror split db log --tag before-upgrade`,
	}
	c.AddCommand(a.mirrorAddCommand(), a.mirrorRemoveCommand(), a.mirrorRepairCommand(), a.mirrorStatusCommand(),
		a.mirrorSplitCommand(), a.mirrorResyncCommand(), a.mirrorRevertCommand(), a.mirrorReverseCommand(),
		a.mirrorBreakCommand(), a.mirrorDeleteCommand(), a.mirrorChangesCommand())
	return c
}

func (a *app) mirrorAddCommand() *cobra.Command {
	var pool string
	c := &cobra.Command{
		Use:   "add VOLUME --pool POOL",
		Short: "Add a mirror to a volume",
		Long: `Add a mirror to a volume. It is filled while the volume is in use; the command
returns when the copying has begun, and mirror status follows it.`,
		Example: `  cleave mirror add db --pool c`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				v, err := s.AddMirror(c.Context(), args[0], pool)
				if err != nil {
					return err
				}
				return a.print(volumeResult(v))
			})
		},
	}
	c.Flags().StringVar(&pool, "pool", "", "pool that the mirror is made in (required)")
	if err := c.MarkFlagRequired("pool"); err != nil {
		panic(err) // a flag that is not there: a slip in this function
	}
	return c
}

func (a *app) mirrorRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove VOLUME MIRROR",
		Short: "Remove a mirror from a volume",
		Long: `Remove a mirror, named by its ID, and delete its file. The last mirror in sync
can't be removed. cleave mirror add makes another, which is filled anew.`,
		Example: `  cleave mirror remove db 3f0c1b1e-6f55-4c8f-9a35-0d5d4c2d7f11`,
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				v, err := s.RemoveMirror(c.Context(), args[0], args[1])
				if err != nil {
					return err
				}
				return a.print(volumeResult(v))
			})
		},
	}
}

func (a *app) mirrorRepairCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "repair VOLUME",
		Short: "Give a volume the mirrors that it should have",
		Long: `Give a volume the mirrors that it should have. A broken one whose file can be
used again is filled with what it missed, where that is known; any other is
replaced by a new one in the same pool, and its file deleted. Mirrors that are
gone for good, because their split was deleted or broken off, are replaced as
well; those split off are not. The volume stays in use. The command returns when
the copying has begun, and mirror status follows it.`,
		Example: `  cleave mirror repair db && cleave mirror status db`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				v, err := s.RepairVolume(c.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(volumeResult(v))
			})
		},
	}
}
