package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func (a *app) mirrorCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "mirror",
		Short: "Add, remove and watch the mirrors of a volume",
		Long:  `The mirrors of a volume: copies that the array keeps equal.`,
		Example: `  cleave mirror status db
  cleave mirror add db --pool c`,
	}
	c.AddCommand(a.mirrorAddCommand(), a.mirrorRemoveCommand(), a.mirrorStatusCommand(), a.mirrorResyncCommand())
	return c
}

func mirrorTable(vs []Volume) table {
	t := table{head: []string{"MIRROR", "VOLUME", "POOL", "STATE", "COPIED", "+FILE", "REASON"}}
	for _, v := range vs {
		for _, m := range v.Mirrors {
			copied := ""
			if m.ToCopy > 0 {
				copied = fmt.Sprintf("%s of %s", size(m.Copied), size(m.ToCopy))
			}
			t.add(m.ID, v.Name, m.Pool, m.State, copied, m.File, m.Reason)
		}
	}
	return t
}

func (a *app) mirrorStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [VOLUME]",
		Short: "Show mirrors, their states and how far copying is",
		Example: `  cleave mirror status
  cleave mirror status db -o wide`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				vs, err := s.Volumes(c.Context())
				if err != nil {
					return err
				}
				if len(args) == 1 {
					v, err := findVolume(vs, args[0])
					if err != nil {
						return err
					}
					vs = []Volume{v}
				}
				r := volumesResult(vs)
				r.text = func(w io.Writer, p *paper) error { p.draw(w, mirrorTable(vs)); return nil }
				return a.print(r)
			})
		},
	}
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
can't be removed.`,
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

func (a *app) mirrorResyncCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resync SPLIT",
		Short: "Put a split back under its volume as a mirror",
		Long: `Put a split, named by its ID as volume show lists it, back under its volume.
Only what changed on either side is copied, from the volume; what was written to
the split is lost. The command returns when the copying has begun.

Splits that belong to a snapshot set are given back by cleave snapshot delete.`,
		Example: `  cleave mirror resync 0b6c5c3a-0f5e-4d0e-8a52-6c1a9d3f3c77`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				if err := s.Resync(c.Context(), args[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintln(a.Out, args[0])
				return err
			})
		},
	}
}
