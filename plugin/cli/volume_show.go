package cli

import "github.com/spf13/cobra"

func (a *app) volumeListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List volumes with their mirrors and LUNs",
		Long:  `List the volumes of the embedded array. MIRRORS counts those in sync and those wanted.`,
		Example: `  cleave volume list
  cleave volume list -o json | jq '.volumes[].size'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withStorage(func(s Storage) error {
				vs, err := s.Volumes(c.Context())
				if err != nil {
					return err
				}
				return a.print(volumesResult(vs))
			})
		},
	}
}

func (a *app) volumeShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show one volume in full",
		Example: `  cleave volume show db`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				vs, err := s.Volumes(c.Context())
				if err != nil {
					return err
				}
				v, err := findVolume(vs, args[0])
				if err != nil {
					return err
				}
				return a.print(volumeResult(v))
			})
		},
	}
}
