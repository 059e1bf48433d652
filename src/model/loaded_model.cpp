#include "model/source.hpp"

namespace sl {

LoadedModel::LoadedModel(ModelSource source, const Context& context, Communicator& tensor_parallel,
                         int64_t adapter_rank)
    : source_(std::move(source)),
      context_(context),
      tensor_parallel_(tensor_parallel),
      shard_(source_.config, tensor_parallel.size(), tensor_parallel.rank()),
      parameters_(
          load_parameters(source_.config, shard_, context.storage_place(), *source_.weights, adapter_rank)) {}

}  // namespace sl
