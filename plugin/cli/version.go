package cli

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print which release this is",
		Example: `  cleave version
  cleave version -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.print(result{
				value: ordered{{"version", 1}, {"release", a.parts.Release}, {"go", runtime.Version()}, {"platform", runtime.GOOS + "/" + runtime.GOARCH}},
				names: []string{a.parts.Release},
				text: func(w io.Writer, _ *paper) error {
					_, err := fmt.Fprintf(w, "cleave %s (%s %s/%s)\n", a.parts.Release, runtime.Version(), runtime.GOOS, runtime.GOARCH)
					return err
				},
			})
		},
	}
}
