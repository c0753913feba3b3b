package command

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/mapper"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/protobuf/types/known/structpb"
)

// checkFailures lists everything wrong with the properties of one of the input structs. A property that is not known
// yet is checked when it is.
func checkFailures[T any](s *structpb.Struct) []*pulumirpc.CheckFailure {
	all, err := plugin.UnmarshalProperties(s, plugin.MarshalOptions{KeepUnknowns: true, SkipNulls: true})
	if err != nil {
		return []*pulumirpc.CheckFailure{{Reason: err.Error()}}
	}
	known := knownIn(all)

	var failures []*pulumirpc.CheckFailure
	var target T
	if err := mapper.Map(known, &target); err != nil {
		for _, failure := range err.Failures() {
			if field, ok := failure.(mapper.FieldError); ok {
				failures = append(failures, &pulumirpc.CheckFailure{Property: field.Field(), Reason: field.Reason()})
			} else {
				failures = append(failures, &pulumirpc.CheckFailure{Reason: failure.Error()})
			}
		}
	}
	if logging, ok := known["logging"].(string); ok && !slices.Contains(loggingValues, Logging(logging)) {
		failures = append(failures, &pulumirpc.CheckFailure{
			Property: "logging",
			Reason:   fmt.Sprintf("logging is %q; it must be one of %q", logging, loggingValues),
		})
	}
	slices.SortFunc(failures, func(a, b *pulumirpc.CheckFailure) int { return cmp.Compare(a.Property, b.Property) })
	return failures
}
