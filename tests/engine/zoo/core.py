"""The programs that stand for the others: one for each way in which a step can change. The rest are marked slow."""

NAMES = """
    plain_vae plain_mean_field plain_trace_graph enumerated_mixture auto_normal subsampled_plate
    list_in_closure tuple_rebound deque_rotated nested_five_deep list_changed_for_one_step global_list
    dict_order set_in_closure mapping_proxy
    tensor_in_list_replaced tensor_data_replaced tensor_data_read_as_number numpy_in_place numpy_view_of_base
    numpy_scalar_rebound distribution_in_closure
    network_as_key dictionary_of_attributes_replaced tensor_of_other_shape
    global_argparse_namespace class_attribute_of_grandparent slots property_of_private_list get_attr
    instance_shadows_class equal_to_everything
    module_dict module_private module_property callable_object method_of_base_replaced
    default_argument_changed function_attribute partial_as_model code_replaced evaluated_name single_dispatch
    global_of_other_module function_of_other_module_replaced torch_function_replaced
    float_argument int_argument_each_step namespace_argument list_argument_changed_in_place iterator_argument
    list_argument_popped tensor_argument_written_by_model data_loader_batches
    gradient_of_input observation_outside_support nan_loss wrong_shape
    branch_on_latent branch_rarely_taken item_back_into_tensor raises_on_values
    repeat_interleave where_with_one_argument one_hot_with_classes loop_over_count
    asks_for_gradient_mode packed_sequences markov_chain plate_size_changes
    python_random python_random_now_and_then numpy_random torch_generator_of_its_own manual_seed_in_guide fork_rng
    seed_handler_on_guide draws_between_steps dropout
    counter_by_nonlocal counter_in_list counter_of_module counter_in_buffer counter_shared_by_model_and_guide
    itertools_count cache_by_key value_made_at_first_call data_loader_iterator_in_closure
    norms_in_list tensors_in_list running_mean_used raises_at_tenth_call prints warns appends_to_file
    environment_variable clock_local_time clock_for_timing file_read_in_model open_file_read default_dtype
    weight_frozen_and_freed store_cleared store_set_back network_of_another_optimizer leaf_in_closure
    layer_replaced_in_sequential modes_with_dropout batch_norm_modes bias_before_batch_norm buffer_replaced
    forward_hook gradient_hook hook_that_counts hook_on_latent
    clipped_adam exponential_rate own_call_clips own_call_skips torch_subclass_records arguments_by_parameter
    optimizer_replaced momentum_forgotten parameter_with_gradient_at_times
    number_of_particles renyi_alpha own_loss_closure own_loss_that_records elbo_subclass_own_gradients baseline
    model_replaced guide_replaced loss_and_gradients_replaced evaluation_in_between two_svis_in_turn
    scale_around_step no_grad_around_step threads_in_turn functions_of_pyro_in_other_thread
    scaler_of_scikit_learn data_set_in_closure
    method_of_library_replaced array_file_read_in_model step_of_adam_replaced
"""
CORE = frozenset(NAMES.split())
